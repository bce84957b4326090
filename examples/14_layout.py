# %% [markdown]
"""
# 14. Layout

The subject goes where its tokens are put.

A token carries no position. To move the subject, move its mask M and gather X_ref by the moved index: the canvas cell
(r, c) takes the reference cell (r - dr, c - dc). A new place is new data for the compiled program. A token's content
does have a size and a direction, so to scale or mirror a subject, change its picture first.

The rest of the canvas is the prompt's, which names the subject too. Where that is small or in a corner, the picture
soon decides for another one in the free part. So it may begin with a prompt of its own, of what is around the subject:
its text stands for the prompt's in the images' sequences above flow time 0.8, in which a layout is decided. (The paper
has nothing like it.)

    python examples/14_layout.py
    jaxpa personalize --subject examples/pictures/car.png --mask examples/pictures/car-mask.png --prompt "a yellow striped car on a beach" --place 0.35,0.65 --place 0.5,0.7 --place 0.65,0.65 --place 0.5,0.45 --out car.png
    jaxpa personalize --subject examples/pictures/car.png --mask examples/pictures/car-mask.png --at 0.02,0.02,0.5,0.5 --prompt "a yellow striped car on a beach" --surroundings "a beach" --out small.png
"""

# %%
import numpy as np
from _show import save, subject
from PIL import Image

import jaxpa
from jaxpa.media.figures import sheet
from jaxpa.tokens import shift

PROMPT = "a yellow striped car on a beach"
PLACES = ((0.35, 0.65), (0.5, 0.7), (0.65, 0.65), (0.5, 0.45))  # x, y of the middle, in fractions of the canvas
BOXES = ((0.02, 0.4, 0.98, 0.92), (0.15, 0.3, 0.85, 0.9), (0.3, 0.4, 0.95, 0.9))  # left, top, right, bottom
SMALL = ((0.45, 0.55, 0.98, 0.9), (0.02, 0.02, 0.5, 0.5))
AROUND = "a beach"

# %% [markdown]
"""
## By hand

The gather index of a mask that moves by (dr, dc) cells, and the moved mask; what leaves the grid is dropped.
"""


# %%
def moved(mask: np.ndarray, dr: int, dc: int, h: int = 12, w: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """mask (h * w,) -> for each canvas cell the reference cell that it takes, and whether it takes one."""
    r, c = np.divmod(np.arange(h * w), w)
    inside = (r >= dr) & (r < h + dr) & (c >= dc) & (c < w + dc)
    source = np.where(inside, (r - dr) * w + c - dc, 0)
    target = inside & mask[source]
    return np.where(target, source, np.arange(h * w)), target


pipe = jaxpa.load("mini")
mask = np.asarray(pipe.references([subject("car")]).masks[0])
there = shift(mask, 12, 12, -2, 3)  # type: ignore[arg-type]
differ = sum(int(np.sum(a != b)) for a, b in zip(moved(mask, -2, 3), there, strict=True))
print(f"two rows up and three columns right, by hand and by jaxpa: {differ} cells apart")

# %%


def made(around: str | None = None, **how: object) -> Image.Image:
    return pipe.personalize(PROMPT, [subject("car", **how)], seed=0, surroundings=around)[0]


def named(box: tuple[float, ...]) -> str:
    return "box " + ", ".join(f"{edge:g}" for edge in box)


rows = [[(f"middle at {x:g}, {y:g}", made(at=(x, y))) for x, y in PLACES]]
rows.append([*((named(box), made(at=box)) for box in BOXES), ("mirrored", made(flip=True))])
told = ((None, "the prompt alone"), (AROUND, f'around it "{AROUND}"'))
rows.append([(f"{named(box)}; {said}", made(around, at=box)) for box in SMALL for around, said in told])
save(sheet(rows, 192), "14-layout")

# %% [markdown]
"""
## Change something

Put the car half outside (`at=(0.95, 0.7)`): the cells that leave the grid are dropped, the border cuts the car, and
the embedded model draws a second one in the free half of the beach. With `surroundings="a beach"` that half stays
empty. Then say `surroundings="a night sky"`, against the prompt: it is night, and the prompt's beach comes too late.
"""
