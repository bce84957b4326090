"""How many pictures a minute `jaxpa batch` makes of mixed lines, and whether `kill -9` loses or changes one of them.

    python examples/measure_batch.py                    the rates of two ways through the same 200 lines
    python examples/measure_batch.py --kills 20         kills a run that often, and compares the bytes at the end

The lines are those of an evening's work: prompts with one to three seeds, a reference in new scenes and places, edits,
on two canvases. One way is the command's own; the other samples one picture at a time (`--batch-size 1`). Both start
without compiled programs, in processes of their own. With --package FOLDER it is another checkout, such as an older
commit's, that is timed alone.
"""

import argparse
import hashlib
import os
import random
import shlex
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "examples" / "pictures"
THINGS = ("mug", "house", "car", "fish", "mushroom", "star", "boat", "cat")
COLOURS = ("red", "yellow", "green", "blue", "purple", "white")
PLACES = ("on a beach", "in a forest", "under a night sky", "in the snow", "in a desert", "in a room")


def lines_of(count: int, folder: Path) -> list[str]:
    """Mixed lines: four in ten generate, as many personalise, two edit."""
    rng, lines = random.Random(0), []
    at = ("0.4,0.6", "0.5,0.5", "0.6,0.5")
    for k in range(count):
        prompt = f"a {rng.choice(COLOURS)} {rng.choice(THINGS)} {rng.choice(PLACES)}"
        size = [[], ["--height", "96", "--width", "128"]][k // 5 % 4 == 3]
        car = [f"{PICTURES}/car.png", "--mask", f"{PICTURES}/car-mask.png"]
        if k % 5 in (0, 2):
            words = ["generate", "--num-images", str(1 + k // 5 % 3), *size]
        elif k % 5 in (1, 3):
            words = ["personalize", "--subject", *car, "--at", at[k // 5 % 3], "--no-figure", *size]
        else:
            words = ["inpaint", "--image", *car, "--no-figure"]
        lines.append(shlex.join([*words, "--prompt", prompt, "--seed", str(k), "--out", str(folder / f"{k:03d}.png")]))
    return lines


def batch(file: Path, package: Path, *flags: str) -> subprocess.Popen[bytes]:
    """`jaxpa batch` of a checkout, whose compiled programs are kept beside the file."""
    environment = os.environ | {"PYTHONPATH": str(package), "XDG_CACHE_HOME": str(file.parent / "cache")}
    return subprocess.Popen([sys.executable, "-m", "jaxpa", "batch", str(file), *flags], env=environment,
                            cwd=package, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip


def written(folder: Path, count: int) -> Path:
    """A file of lines, and the folder of its pictures."""
    (folder / "made").mkdir(parents=True)
    file = folder / "jobs.txt"
    file.write_text("\n".join(lines_of(count, folder / "made")))
    return file


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def rate(folder: Path, count: int, package: Path, *flags: str) -> float:
    """Pictures a minute of a whole run."""
    file, start = written(folder, count), time.monotonic()
    assert batch(file, package, *flags).wait() == 0
    return 60 * len(digests(folder / "made")) / (time.monotonic() - start)


def killed(folder: Path, count: int, kills: int) -> None:
    """An undisturbed run, and one that is killed: the same files with the same bytes, and none beside them."""
    undisturbed, disturbed = written(folder / "a", count), written(folder / "b", count)
    start = time.monotonic()
    assert batch(undisturbed, ROOT).wait() == 0
    seconds, rng = time.monotonic() - start, random.Random(0)
    for _ in range(kills):
        process = batch(disturbed, ROOT, "--again")
        time.sleep(rng.uniform(0.2, 0.9) * seconds)
        process.kill()
        process.wait()
    assert batch(disturbed, ROOT).wait() == 0
    for one in (folder / "a", folder / "b"):
        assert {file.name for file in one.iterdir()} == {"made", "jobs.txt", "jobs.txt.done.jsonl", "cache"}
    want, got = digests(folder / "a" / "made"), digests(folder / "b" / "made")
    different = [name for name in want.keys() | got.keys() if want.get(name) != got.get(name)]
    print(f"{kills} kills, {len(want)} pictures: {len(different)} differ {different[:5]}")
    sys.exit(bool(different))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=200)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--package", type=Path, default=None)
    said = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        if said.kills:
            killed(folder, said.lines, said.kills)
        if said.package is not None:
            print(f"{said.package}: {rate(folder / 'other', said.lines, said.package):.1f} pictures a minute")
            return
        together = rate(folder / "together", said.lines, ROOT)
        print(f"in batches: {together:.1f} pictures a minute", flush=True)
        alone = rate(folder / "alone", said.lines, ROOT, "--batch-size", "1")
        print(f"one at a time: {alone:.1f} pictures a minute; {together / alone:.2f} times as many in batches")


if __name__ == "__main__":
    main()
