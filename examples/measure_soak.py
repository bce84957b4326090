"""Hundreds of pictures in one process: does memory stay flat, and does anything compile that need not?

    python examples/measure_soak.py [--pictures 500] [--json FILE]

Pictures of mini: four of the verbs on four canvases, with new prompts, seeds, taus, masks and places each time. A round
has every shape once; the first two rounds warm up. After each round the script prints the memory of the process and how
many programs XLA has compiled. It ends with status 1 if memory has grown by more than 5% after the warm-up, or if a
round after it compiles.
"""

import argparse
import gc
import itertools
import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

import jaxpa
from jaxpa.devices.timing import Clock

PICTURES = Path(__file__).parent / "pictures"
CANVASES = ((96, 96), (64, 96), (96, 128), (128, 64))  # height, width
FAMILIES = ("mug", "house", "car", "fish", "mushroom", "star", "boat", "cat")
COLOURS = ("red", "yellow", "green", "blue", "purple", "white")
PLACES = ("on a beach", "in a forest", "under a night sky", "in the snow", "in a desert", "in a room")
WARM, GROWTH = 2, 0.05


def memory() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def round_of(pipe: jaxpa.Pipeline, rng: random.Random) -> list[Callable[[], list[Image.Image]]]:
    """A picture of every shape: four verbs on every canvas, one of them for two pictures."""
    with Image.open(PICTURES / "car.png") as opened:
        picture = opened.convert("RGB")
    made: list[Callable[[], list[Image.Image]]] = []
    for height, width in CANVASES:
        prompt = f"a {rng.choice(COLOURS)} {rng.choice(FAMILIES)} {rng.choice(PLACES)}"
        said = {"seed": rng.randrange(1000), "height": height, "width": width}
        mask = np.zeros((picture.height, picture.width), bool)
        top, left = (rng.randrange(side // 2) for side in mask.shape)
        mask[top : top + mask.shape[0] // 2, left : left + mask.shape[1] // 2] = True
        at = (rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7))
        riding = {**said, "tau": rng.uniform(0.3, 0.9)}
        subject = jaxpa.Subject(PICTURES / "car.png", mask=PICTURES / "car-mask.png", at=at)
        made += [
            lambda p=prompt, k=said: pipe.generate(p, **k),
            lambda p=prompt, k=said: pipe.generate([p, p], num_images=2, **k),
            lambda p=prompt, k=riding, s=subject: pipe.personalize(p, [s], **k),
            lambda p=prompt, k=riding, m=mask: pipe.inpaint(picture, m, p, **k),
            lambda k=said: [pipe.reconstruct(picture, height=k["height"], width=k["width"])[0]],
        ]
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description="Make many pictures in one process, and watch its memory.")
    parser.add_argument("--pictures", type=int, default=500, help="how many, at least (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the rounds there")
    said = parser.parse_args()
    rng, pipe, count, rounds = random.Random(0), jaxpa.load(), 0, []
    start = time.perf_counter()
    with tqdm(total=said.pictures, unit="picture", disable=None) as bar, Clock() as clock:
        for k in itertools.count():
            before = clock.programs
            for make in round_of(pipe, rng):
                made = len(make())
                count += made
                bar.update(made)
            gc.collect()
            rounds.append({"pictures": count, "bytes": memory(), "compiled": clock.programs - before})
            tqdm.write(f"{count} pictures: {rounds[-1]['bytes'] / 2**20:.0f} MiB, {rounds[-1]['compiled']} compiled")
            if count >= said.pictures and k > WARM:
                break
    warm, rest = rounds[WARM - 1], rounds[WARM:]
    growth = max(each["bytes"] for each in rest) / warm["bytes"] - 1
    compiled = sum(each["compiled"] for each in rest)
    spent = time.perf_counter() - start
    print(
        f"{count} pictures of {len(CANVASES)} canvases in {spent:.0f} s: after {warm['pictures']}, memory grew by "
        f"{100 * growth:.1f} % at most, and {compiled} programs were compiled ({clock.programs} in all)"
    )
    if said.json:
        said.json.write_text(
            json.dumps({"rounds": rounds, "growth": growth, "compiled_after_warm_up": compiled}, indent=1)
        )
    return 1 if growth > GROWTH or compiled else 0


if __name__ == "__main__":
    sys.exit(main())
