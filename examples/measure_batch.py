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
import signal
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
    """`jaxpa batch` of a checkout, whose compiled programs are kept beside the file's folder."""
    environment = os.environ | {"PYTHONPATH": str(package), "XDG_CACHE_HOME": f"{file.parent}-cache"}
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
    """An undisturbed run, and one that is killed again and again: the same files with the same bytes, and none beside.

    Each run goes on where the killed one was. One that ends by itself is compared, and all that it made deleted.
    """
    undisturbed, disturbed = written(folder / "a", count), written(folder / "b", count)
    (folder / "b-cache").symlink_to(folder / "a-cache")  # or a run would spend its time on programs alone
    assert batch(undisturbed, ROOT).wait() == 0
    want, made, rng = digests(folder / "a" / "made"), folder / "b" / "made", random.Random(0)
    print(f"the undisturbed run is over: {len(want)} pictures", flush=True)
    done, parts, ends = 0, 0, 0
    while done < kills:
        process, before = batch(disturbed, ROOT), len(list(made.iterdir()))
        if ended(process, made, before + rng.randrange(9), rng.uniform(0, 1)):
            ends += 1
            compared(folder / "b", want)
            for file in (*made.iterdir(), disturbed.with_name("jobs.txt.done.jsonl")):
                file.unlink()
            continue
        process.kill()
        assert process.wait() == -signal.SIGKILL
        got = digests(made)
        whole = {name: digest for name, digest in got.items() if not name.endswith(".tmp")}
        assert whole.items() <= want.items(), "a picture that is not whole"
        done, parts = done + 1, parts + len(got) - len(whole)
        print(f"kill {done}: {len(whole)} of {len(want)} pictures, {len(whole) - before} new", flush=True)
    assert batch(disturbed, ROOT).wait() == 0
    compared(folder / "b", want)
    print(
        f"SIGKILL {kills} times, up to a second after the first to eighth new picture or after the start; {parts} "
        f"half-written file(s) left by these. {count} lines were completed {ends + 1} time(s): the {len(want)} "
        "pictures of the undisturbed run byte for byte, and no other file"
    )


def ended(process: subprocess.Popen[bytes], folder: Path, files: int, delay: float) -> bool:
    """Wait for so many files in a folder, and a while longer; whether the process has ended by itself before."""
    while process.poll() is None:
        if len(list(folder.iterdir())) >= files:
            time.sleep(delay)
            return process.poll() is not None
        time.sleep(0.01)
    assert process.returncode == 0
    return True


def compared(folder: Path, want: dict[str, str]) -> None:
    """Fails where a folder's pictures are not those of the undisturbed run, or where a file stands beside them."""
    assert {file.name for file in folder.iterdir()} == {"made", "jobs.txt", "jobs.txt.done.jsonl"}
    got = digests(folder / "made")
    different = sorted(name for name in want.keys() | got.keys() if want.get(name) != got.get(name))
    assert not different, f"{len(different)} of {len(want)} differ: {different[:5]}"


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
            return
        if said.package is not None:
            print(f"{said.package}: {rate(folder / 'other', said.lines, said.package):.1f} pictures a minute")
            return
        together = rate(folder / "together", said.lines, ROOT)
        print(f"in batches: {together:.1f} pictures a minute", flush=True)
        alone = rate(folder / "alone", said.lines, ROOT, "--batch-size", "1")
        print(f"one at a time: {alone:.1f} pictures a minute; {together / alone:.2f} times as many in batches")


if __name__ == "__main__":
    main()
