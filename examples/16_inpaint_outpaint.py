# %% [markdown]
"""
# 16. Inpainting and outpainting

The same replacement, with the kept part as the reference.

The picture is its own reference, M is the kept part, and tau comes late: 10% of the steps remain (Section 3.4), so the
reference replaces M in almost every step. At the end the kept pixels are pasted back: over half a token around the new
part old and new blend into each other, and beyond that they come out exactly as they went in. For outpainting, the
canvas has more tokens than the picture, which keeps its scale. A token of which any part may change is redrawn as a
whole, so a mask should leave the object some room.

    python examples/16_inpaint_outpaint.py
    jaxpa inpaint --image examples/pictures/boat.png --mask examples/pictures/boat-mask.png --grow 24 --caption "a purple striped boat in a forest" --prompt "a red plain house in a forest" --seed 1 --out house.png
    jaxpa outpaint --image examples/pictures/car.png --pad 0,192,0,0 --caption "a yellow striped car in the snow" --prompt "a yellow striped car in the snow" --out wide.png
"""

# %%
import numpy as np
from _show import PICTURES, save, subject
from PIL import Image

import jaxpa
from jaxpa.media import images, masks
from jaxpa.media.figures import overlay, sheet

CASES = (
    ("boat", "a purple striped boat in a forest", "a red plain house in a forest"),
    ("mug", "a white striped mug in a meadow", "a red striped mushroom in a meadow"),
)
CAR = "a yellow striped car in the snow"
PAD = (0, 192, 0, 0)  # top, right, bottom, left, in pixels of the picture, of which 32 x 32 are a token here

# %% [markdown]
"""
## By hand

Which tokens are kept: those of which no pixel may change.
"""


# %%
def untouched(mask: np.ndarray, h: int = 12, w: int = 12) -> np.ndarray:
    """A pixel mask (H, W), 1 where the picture may change -> (h * w,) bool."""
    rows, cols = mask.shape
    return (mask.reshape(h, rows // h, w, cols // w).max((1, 3)) == 0).reshape(-1)


# %%
pipe = jaxpa.load("mini")
rows = []
for name, caption, prompt in CASES:
    picture = Image.open(PICTURES / f"{name}.png").convert("RGB")
    drawn = images.read_mask(subject(name).mask, picture.size)  # type: ignore[arg-type]
    mask = Image.fromarray((255 * masks.grow(drawn, 24)).astype(np.uint8))
    kept = untouched(np.asarray(mask) / 255.0)
    there = ~masks.token_mask(np.asarray(mask) / 255.0, 12, 12, 1e-6)
    print(f"{name}, kept tokens by hand and by jaxpa: {np.sum(kept != there)} tokens apart")
    made = pipe.inpaint(picture, mask, prompt, caption=caption, seed=1, num_images=3)
    rows.append([("the picture", picture), ("tokens that are kept", overlay(picture, kept, 12, 12))])
    rows[-1] += [(f"{prompt}\nseed {seed}", image) for seed, image in enumerate(made, 1)]

car = Image.open(PICTURES / "car.png").convert("RGB")
whole, mask = Image.new("RGB", (576, 384), "white"), np.zeros((384, 576))
whole.paste(car, (0, 0))
mask[:, 384:] = 1
kept = untouched(mask, 12, 18)
made = pipe.outpaint(car, CAR, PAD, caption=CAR, seed=0, num_images=3)
rows.append([("the picture", car), ("tokens that are kept", overlay(whole, kept, 12, 18))])
rows[-1] += [(f"more of it on the right\nseed {seed}", image) for seed, image in enumerate(made)]
save(sheet(rows, 160), "16-inpaint-outpaint")

# %% [markdown]
"""
## Change something

Let the mask end at the boat's outline (`masks.grow(drawn, 0)`). Tokens at its rim are half boat, half forest, and are
drawn anew as a whole, but most of their pixels outside of the mask are pasted back: the house is cut where the boat
ended. This is what the 24 pixels of room are for. Then give `pipe.outpaint` a `feather=0`, and look for the seam.
"""
