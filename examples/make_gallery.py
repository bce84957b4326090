"""Run every script of the course in order, and print the seconds of each: `python examples/make_gallery.py [FOLDER]`.

The pictures go to examples/gallery, or to FOLDER.
"""

import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    failed = []
    for script in sorted(HERE.glob("[0-9][0-9]_*.py")):
        start = time.perf_counter()
        if subprocess.run([sys.executable, script, *sys.argv[1:2]], check=False).returncode:
            failed.append(script.name)
        print(f"{script.name}: {time.perf_counter() - start:.0f} s", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
