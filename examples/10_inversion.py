# %% [markdown]
"""
# 10. Inversion

The flow can be walked backwards: from data, against the velocity, to the noise from which the model would make this
picture. RF inversion (Rout et al. 2024, Eq. 8) adds a pull towards a noise e of our choice:

    y += (t_next - t) [v(y, t) + gamma ((e - y) / (1 - t) - v(y, t))]        from t = 0 to t = 1

With gamma 0 this is the plain inversion, which leads back to the picture. With gamma 1 it forgets the picture and ends
at e, whatever the model says. The prompt is followed without guidance, because guidance bends the flow.

    python examples/10_inversion.py
    jaxpa invert --image examples/pictures/cat.png --prompt "a green dotted cat on a beach" --out cat.png
"""

# %%
from itertools import pairwise
from typing import Any

import numpy as np
from _show import ask, picture, save

import jaxpa
from jaxpa import inversion
from jaxpa.media.figures import sheet
from jaxpa.media.images import psnr

CAPTION = "a green dotted cat on a beach"

# %% [markdown]
"""
## By hand

The network is asked at each step's noisier end, where the sampler will ask it on the way back.
"""


# %%
def walk(velocity: Any, y: np.ndarray, times: np.ndarray, e: np.ndarray, gamma: float = 0.0) -> list[np.ndarray]:
    """The equation above. With gamma 0 times may fall: from noise to data."""
    states = [y]
    for t, t_next in pairwise(times):
        v = ask(velocity, y, max(t, t_next))
        pull = gamma * ((e - y) / (1 - t) - v) if gamma else 0.0
        y = y + (t_next - t) * (v + pull)
        states.append(y)
    return states


pipe = jaxpa.load("mini")
cat = picture("cat")
x0 = np.asarray(pipe.encode_image(cat))  # (1, 144, 32)
e = np.asarray(pipe.noise(np.array([9], np.uint32), (12, 12)))
velocity = pipe.velocity(pipe.encode_text([CAPTION]), guidance=1.0)
falling = np.asarray(pipe.times(28, (12, 12)))
rising = falling[::-1]
states = walk(velocity, x0, rising, e)
there = np.asarray(inversion.invert(velocity, x0, e, inversion.forward_times(falling)))  # type: ignore[arg-type]
print(f"by hand and by jaxpa.inversion: {np.abs(there[-1] - states[-1]).max():.1g} apart")

# %%
shown = (8, 16, 24, 28)
ways = pipe.decode(np.concatenate([states[i] for i in shown]))  # type: ignore[arg-type]
rows = [[("the picture", cat)] + [(f"to noise\nt = {rising[i]:.2f}", w) for i, w in zip(shown, ways, strict=True)]]


def row(names: list[str], tokens: list[np.ndarray]) -> None:
    pictures = pipe.decode(np.concatenate(tokens))  # type: ignore[arg-type]
    rows.append([(f"{name}\n{psnr(cat, each):.1f} dB", each) for name, each in zip(names, pictures, strict=True)])


# %% [markdown]
"""
There and back, in more and fewer steps; then with more and more of a foreign noise. Noise of a normal distribution has
a deviation of 1; what inversion finds has less, and that is what the way back misses.
"""

# %%
counts, back = (7, 14, 28, 56), [x0]
for steps in counts:
    times = np.asarray(pipe.times(steps, (12, 12)))
    noise = walk(velocity, x0, times[::-1], e)[-1]
    print(f"{steps} steps: the noise deviates by {noise.std():.2f}")
    back.append(walk(velocity, noise, times, e)[-1])
row(["the autoencoder alone", *(f"{n} steps, there and back" for n in counts)], back)

gammas = (0.0, 0.1, 0.25, 0.5, 1.0)
noises = [walk(velocity, x0, rising, e, gamma)[-1] for gamma in gammas]
likeness = [np.corrcoef(noise.ravel(), e.ravel())[0, 1] for noise in noises]
names = [f"gamma {gamma:g}, noise like e: {like:.2f}" for gamma, like in zip(gammas, likeness, strict=True)]
row(names, [walk(velocity, noise, falling, e)[-1] for noise in noises])
save(sheet(rows, 176), "10-inversion")

# %% [markdown]
"""
## Change something

Walk back with another caption than on the way there: give `walk` the velocity of "a red plain house in a forest", with
`states[-1]`, `falling` and `e`. A red house in a forest comes out, as tall as the cat and in its place, with the cat's
ears and eyes on its roof: the noise holds the layout, the caption says what it is.
"""
