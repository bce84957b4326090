# %% [markdown]
"""
# 15. Several subjects, and a scene

References replace their regions one after the other; where they overlap, the later one wins:

    X <- X * (1 - M_k) + X_ref_k * M_k   for k = 1, 2, ...

A scene is a reference whose mask is the whole canvas; it comes first. All references run in one batch with the image,
so a second subject costs one more row while t > tau, and nothing below it. The embedded model has only seen two
subjects side by side, and small: details blur, and where one stands in front of the other, the old edge may show
through. What is around the pair is said for the first steps (lesson 14).

    python examples/15_several_subjects.py
    jaxpa personalize --subject examples/pictures/mug.png --mask examples/pictures/mug-mask.png --at 0.04,0.45,0.46,0.9 --subject examples/pictures/car.png --mask examples/pictures/car-mask.png --at 0.52,0.5,0.98,0.9 --prompt "a white striped mug and a yellow striped car in a desert" --surroundings "a desert" --out two.png
    jaxpa personalize --scene examples/pictures/cat.png --subject examples/pictures/car.png --mask examples/pictures/car-mask.png --at 0.5,0.45,1,0.9 --prompt "a green dotted cat and a yellow striped car on a beach" --tau 0.2 --out scene.png
"""

# %%
import numpy as np
from _show import PICTURES, save, subject
from PIL import Image

import jaxpa
from jaxpa.media.figures import sheet
from jaxpa.routing import replacement_source
from jaxpa.tokens import Placement, restrict

LEFT, RIGHT = (0.04, 0.45, 0.46, 0.9), (0.52, 0.5, 0.98, 0.9)

PAIRS = (
    ("mug", "car", "a white striped mug and a yellow striped car in a desert", "a desert"),
    ("car", "boat", "a yellow striped car and a purple striped boat on a beach", "a beach"),
)

# %% [markdown]
"""
## By hand

All regions become one index over the rows [references; image]: where each of the image's tokens comes from.
"""

# %%
pipe = jaxpa.load("mini")
two = pipe.references([subject("mug", at=(0.04, 0.45, 0.6, 0.9)), subject("car", at=(0.4, 0.5, 0.98, 0.9))])
source, target = (np.asarray(each)[0] for each in restrict(two.where, two.masks))  # type: ignore[arg-type]  # (2, 144) each
index = 2 * 144 + np.arange(144)  # the image's own row
for k in range(2):  # the later one wins
    index = np.where(target[k], k * 144 + source[k], index)
there = replacement_source(Placement(source[None], target[None]), 1)[2]  # type: ignore[arg-type]
print(f"by hand and by jaxpa: {np.sum(index != np.asarray(there))} tokens apart")
print(f"{np.sum(target[0] & target[1])} cells are wanted by both")

# %%


def reference(name: str) -> tuple[str, Image.Image]:
    return f"reference\n{name}", Image.open(PICTURES / f"{name}.png")


rows = []
for left, right, prompt, around in PAIRS:
    pair = [subject(left, at=LEFT), subject(right, at=RIGHT)]
    made = pipe.personalize(prompt, pair, surroundings=around, seed=1, num_images=2)
    results = [(f"both\nseed {seed}", image) for seed, image in enumerate(made, 1)]
    rows.append([reference(left), reference(right), *results])

scene = jaxpa.Subject(PICTURES / "cat.png", caption="a green dotted cat on a beach")
near = subject("car", at=(0.5, 0.45, 1.0, 0.9))  # over the tail, whose end would stay alone
prompt = "a green dotted cat and a yellow striped car on a beach"
made = pipe.personalize(prompt, [near], scene, tau=(0.5, 0.2))
ends = [(f"subject in the scene\ntau {tau:g}", image) for tau, image in zip((0.5, 0.2), made, strict=True)]
rows.append([("scene\ncat", reference("cat")[1]), reference("car"), *ends])
save(sheet(rows, 176), "15-several-subjects")

# %% [markdown]
"""
## Change something

Let the two overlap, LEFT to 0.6 and RIGHT from 0.4: the car stands before the mug. Then give the pair in the other
order (`[subject(right, at=RIGHT), subject(left, at=LEFT)]`): now the mug comes last and covers the car's bonnet. Last,
leave out `surroundings`, and look at seed 1: the prompt names a mug, so the desert gets another one.
"""
