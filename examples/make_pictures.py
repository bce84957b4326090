"""Draw the reference pictures and masks of the examples: `python examples/make_pictures.py`.

Subjects come from the drawn world that the embedded checkpoint was trained on, in combinations that training never
showed. Only a reference can supply what no caption says (second colour, stripe width, phase). The photograph is
Chelsea, by Stefan van der Walt, which scikit-image ships under CC0; its mask was outlined by hand.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parent.parent))  # the recipe's world is not installed

from weights.recipe.world import instances, is_held_out, render

SIDE = 384
FOLDER = Path(__file__).parent / "pictures"
SUBJECTS = {  # name: family, colour, pattern, background, which instance
    "car": ("car", "yellow", "striped", "snow", 0),
    "cat": ("cat", "green", "dotted", "beach", 0),
    "mug": ("mug", "white", "striped", "meadow", 0),
    "boat": ("boat", "purple", "striped", "forest", 0),
}
CHELSEA = [(40, 0), (34, 60), (36, 105), (14, 150), (8, 215), (26, 262), (60, 299), (322, 299), (334, 240), (348, 200),
           (364, 150), (360, 72), (398, 22), (402, 0)]  # fmt: skip


def draw(name: str) -> None:
    """One subject: its picture and its mask."""
    family, colour, pattern, background, which = SUBJECTS[name]
    scenes = instances(family, colour, pattern, background, np.random.default_rng(100))
    scene = [next(scenes) for _ in range(which + 1)][-1]
    picture, mask = render(scene, SIDE)
    Image.fromarray(picture).save(FOLDER / f"{name}.png")
    Image.fromarray(mask).save(FOLDER / f"{name}-mask.png")
    print(f"{name}: {'not ' * (not is_held_out(scene))}held out")


def photograph() -> None:
    """The cat and its outline."""
    from skimage import data

    picture = Image.fromarray(data.chelsea())
    picture.save(FOLDER / "chelsea.jpg", quality=90)
    mask = Image.new("L", picture.size)
    ImageDraw.Draw(mask).polygon(CHELSEA, fill=255)
    mask.save(FOLDER / "chelsea-mask.png")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in SUBJECTS:
        draw(name)
    photograph()
