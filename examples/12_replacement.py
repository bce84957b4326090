# %% [markdown]
"""
# 12. Replacement and tau

While t > tau, the reference's tokens replace the tokens X of the target region M (Eq. 2 of Personalize Anything):

    X <- X * (1 - M) + X_ref * M

Below tau the picture is free. A low tau keeps more of the reference and leaves less to the prompt; tau = 1 never
replaces. So that this can be seen, the prompt below contradicts the reference: the car is yellow and striped, the
prompt says blue and dotted.

There are two readings of what is replaced: the features that feed q, k and v in every block (level "layer", the
official code), or the sampler's own tokens between steps (level "token"). The embedded model's preset also starts the
region in the reference's inverted noise (lesson 10), which alone (tau 1) decides the shape. The official preset starts
in independent noise, which suits FLUX's 4096 tokens.

    python examples/12_replacement.py
    jaxpa personalize --subject examples/pictures/car.png --mask examples/pictures/car-mask.png --caption "a yellow striped car in the snow" --prompt "a blue dotted car on a beach" --seed 3 --tau 1 0.9 0.8 0.7 0.5 0.2 --out car.png
"""

# %%
from itertools import pairwise

import numpy as np
from _show import ask, save, subject

import jaxpa
from jaxpa.media.figures import sheet

PROMPT = "a blue dotted car on a beach"
CAPTION = "a yellow striped car in the snow"
SEED = 3
TAUS = (1.0, 0.9, 0.8, 0.7, 0.5, 0.2)

# %% [markdown]
"""
## By hand

Level "token" in NumPy, with the official preset: the reference's way is the straight line from its tokens to noise.
"""

# %%
pipe = jaxpa.load("mini")
car = pipe.references([subject("car", caption=CAPTION)])
times = np.asarray(pipe.times(28, (12, 12)))
x_ref = np.asarray(pipe.trajectory(car, pipe.preset("official"), times))[:, 0]  # (29, 144, 32): at every time
m = np.asarray(car.masks)[0, :, None]  # (144, 1): M
velocity = pipe.velocity(pipe.encode_text([PROMPT]), guidance=pipe.settings.guidance_with_references)


def personalised(tau: float) -> np.ndarray:
    x = np.asarray(pipe.noise(np.array([SEED], np.uint32), (12, 12)))
    for i, (t, t_next) in enumerate(pairwise(times)):
        if t > tau:
            x = x * (1 - m) + x_ref[i] * m
        x = x + (t_next - t) * ask(velocity, x, t)
    return x


by_hand = pipe.decode(personalised(0.5))[0]  # type: ignore[arg-type]
there = pipe.personalize(PROMPT, car, tau=0.5, seed=SEED, preset="official", level="token")[0]
print(f"by hand and by jaxpa: {np.abs(np.asarray(by_hand, int) - np.asarray(there)).max()} levels apart")

# %% [markdown]
"""
A list of taus is one call: one compiled program, the same noise.
"""

# %%
rows = []
for preset, level in (("mini", "layer"), ("mini", "token"), ("official", "layer"), ("official", "token")):
    made = pipe.personalize(PROMPT, car, tau=TAUS, seed=SEED, preset=preset, level=level)
    rows.append([(f"tau {tau:g}\n{preset}, {level} level", image) for tau, image in zip(TAUS, made, strict=True)])
save(sheet(rows, 144), "12-replacement")

# %% [markdown]
"""
## Change something

Replace less: at level "layer", `parts="q"` lets the reference feed the queries only (level "token" refuses it, since it
replaces whole tokens). With the official preset the car then has the reference's shape at tau 0.5, and the prompt's
colour: queries decide where a token looks, keys and values what it finds there. With `parts="kv"` the colour comes
back: about half of it at tau 0.5, nearly all at 0.2.
"""
