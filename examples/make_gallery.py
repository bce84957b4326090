"""Remake every picture of examples/gallery, and print the seconds of each: `python examples/make_gallery.py [FOLDER]`.

It remakes the course in order, then the other pictures that this folder holds.
"""

import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
FIRST = (
    "-m jaxpa personalize --subject examples/pictures/car.png --mask examples/pictures/car-mask.png "
    "--prompt 'a yellow striped car on a beach'"
)


def run(name: str, *words: object) -> bool:
    """Run a Python command in the repository's root -> whether it succeeded."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *map(str, words)], cwd=HERE.parent, check=False).returncode == 0
    print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    return done


def main() -> None:
    gallery = Path(sys.argv[1] if len(sys.argv) > 1 else HERE / "gallery").absolute()
    gallery.mkdir(parents=True, exist_ok=True)
    done = {script.name: run(script.name, script, gallery) for script in sorted(HERE.glob("[0-9][0-9]_*.py"))}
    done["measure_masks.py"] = run("measure_masks.py", HERE / "measure_masks.py", "--out", gallery / "masks.png")
    with tempfile.TemporaryDirectory() as folder:
        done["the README's first command"] = run("first", *shlex.split(FIRST), "--out", Path(folder) / "car.png")
        if (figure := Path(folder) / "car-figure.png").exists():
            shutil.copy(figure, gallery / "car.png")
    if failed := [name for name, succeeded in done.items() if not succeeded]:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
