# %% [markdown]
"""
# 17. A photograph

Chelsea is a real cat, but the model behind these examples has only seen drawings of eight kinds of things. Its
autoencoder has seen natural pictures, so the photograph survives it. Its flow has not: inverted and sampled back, the
fur turns into patches. Replacement still does what it should. A high tau keeps the outline of an eye in a drawing of a
cat; a low tau carries over the photograph's own tokens. What the method promises in between, this cat drawn anew in
that scene, needs a checkpoint that knows photographs: use the same command with --model black-forest-labs/FLUX.1-dev.

    python examples/17_photograph.py
    jaxpa personalize --subject examples/pictures/chelsea.jpg --mask examples/pictures/chelsea-mask.png --at 0.1,0.2,0.85,1 --prompt "a yellow cat under a night sky" --seed 2 --tau 0.9 0.5 0.3 0.1 --out chelsea.png
"""

# %%
from _show import PICTURES, save
from PIL import Image

import jaxpa
from jaxpa.box import Box
from jaxpa.media import images
from jaxpa.media.figures import overlay, sheet

PROMPT = "a yellow cat under a night sky"
BOX = Box(0.1, 0.2, 0.85, 1.0)  # left, top, right, bottom: some room around the head
TAUS = (0.9, 0.5, 0.3, 0.1)

# %%
pipe = jaxpa.load("mini")
whole, boxed = (
    pipe.references([jaxpa.Subject(PICTURES / "chelsea.jpg", PICTURES / "chelsea-mask.png", at=at)])
    for at in (None, BOX)
)
square = images.to_image(whole.images[0])
through = pipe.decode(pipe.encode_image(whole.images))[0]
back, _ = pipe.reconstruct(square, caption="a yellow cat in a room")

rows: list[list[tuple[str, Image.Image]]] = [
    [
        ("the photograph, 96 x 96", square),
        ("its tokens, in a box", overlay(images.to_image(boxed.images[0]), boxed.masks[0], *boxed.grid)),
        ("through the autoencoder", through),
        ("inverted and sampled back", back),
    ]
]
for name, references in (("as it is", whole), ("in a box", boxed)):
    made = pipe.personalize(PROMPT, references, tau=TAUS, seed=2)
    rows.append([(f"{name}, tau {tau:g}", image) for tau, image in zip(TAUS, made, strict=True)])
save(sheet(rows, 192), "17-photograph")

# %% [markdown]
"""
## Change something

Make the box smaller (`Box(0.3, 0.45, 0.75, 0.95)`): the face has some five tokens on a side then, which the model takes
for a piece of a cat: at tau 0.9 it draws a whole one, and from 0.5 down a head of its own above the face. FLUX.1 has 64
tokens on a side where these are 12.
"""
