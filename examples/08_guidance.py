# %% [markdown]
"""
# 8. Guidance, classifier-free and distilled

Trained on pictures and their captions, a network follows a prompt too loosely. Classifier-free guidance (Ho and
Salimans 2022) asks twice, with the prompt and without, and exaggerates the difference:

    v = v_with + (g - 1) (v_with - v_without)

g = 1 is the prompt's own velocity. That costs two forwards a step. FLUX.1-dev and the embedded model are distilled
(Meng et al. 2023): a student has learned to give the guided velocity at once, and g is one of its inputs, embedded like
the time; it costs one. At g = 1 it is still the plain network, so both ways can be compared here.

The embedded model's teacher had two differences, since the empty prompt alone pulls stripes towards one colour:

    v = v_with + (g - 1) [(v_with - v_without) (t <= 0.8) + 1.25 (v_with - v_other)]      other: another pattern

    python examples/08_guidance.py
"""

# %%
from itertools import pairwise

import numpy as np
from _show import ask, drawn, figure, save, stack

import jaxpa
from jaxpa.media.figures import sheet
from jaxpa.sampling import ClassifierFree

PROMPT = "a red striped mushroom in a forest"
OTHERS = ("a red plain mushroom in a forest", "a red dotted mushroom in a forest")
SCALES = (1.0, 2.0, 3.5, 5.0)

# %% [markdown]
"""
## By hand

All prompts are rows of one batch: with, without, and the two others, whose mean is taken.
"""

# %%
pipe = jaxpa.load("mini")
rows = pipe.velocity(pipe.encode_text([PROMPT, "", *OTHERS]), guidance=1.0)
student = {g: pipe.velocity(pipe.encode_text([PROMPT]), guidance=g) for g in SCALES}
times = np.asarray(pipe.times(14, (12, 12)))


def classifier_free(x: np.ndarray, t: float, g: float) -> np.ndarray:
    v, without, *_ = ask(rows, np.repeat(x, 4, 0), t)
    return (v + (g - 1) * (v - without))[None]


def teacher(x: np.ndarray, t: float, g: float) -> np.ndarray:
    v, without, *others = ask(rows, np.repeat(x, 4, 0), t)
    return (v + (g - 1) * ((v - without) * (t <= 0.8) + 1.25 * (v - np.mean(others, 0))))[None]


def distilled(x: np.ndarray, t: float, g: float) -> np.ndarray:
    return ask(student[g], x, t)


noise = np.asarray(pipe.noise(np.array([1], np.uint32), (12, 12)))
pair = pipe.velocity(pipe.encode_text([PROMPT, ""]), guidance=1.0)
both = ClassifierFree(pair, np.float32(4))  # type: ignore[arg-type]
apart = np.abs(classifier_free(noise, 0.7, 4.0) - ask(both, noise, 0.7)).max()
print(f"classifier-free by hand and by jaxpa.sampling: {apart:.1e} apart")

# %%
panels, ways = [], {}
for name, way in (("classifier-free", classifier_free), ("the teacher", teacher), ("distilled", distilled)):
    for g in SCALES:
        states = [noise]
        for t, t_next in pairwise(times):
            states.append(states[-1] + (t_next - t) * way(states[-1], t, g))
        ways[name, g] = states
    pictures = pipe.decode(np.concatenate([ways[name, g][-1] for g in SCALES]))  # type: ignore[arg-type]
    panels.append([(f"{name}\ng = {g:g}", image) for g, image in zip(SCALES, pictures, strict=True)])

# %% [markdown]
"""
How well has the student learned? Along the teacher's way, its error beside all that guidance changes:
"""

# %%
curves, (axis,) = figure(7.6, 2.4)
for g in SCALES[1:]:
    missed = []
    for x, t in zip(ways["the teacher", g][:-1], times[:-1], strict=True):
        v, plain = teacher(x, t, g), ask(student[1.0], x, t)
        missed.append(np.linalg.norm(distilled(x, t, g) - v) / np.linalg.norm(v - plain))
    axis.plot(times[:-1], missed, marker=".", label=f"g = {g:g}")
axis.axhline(1, color="grey", ls=":", label="no guidance")
axis.set(xlabel="flow time t", ylabel="error / change", xlim=(1, 0), ylim=(0, 1.2))
axis.legend(frameon=False, ncols=3, fontsize=8)
save(stack(sheet(panels, 160), drawn(curves)), "08-guidance")

# %% [markdown]
"""
## Change something

A negative prompt takes the place of the empty one: let `classifier_free` push away from `others[0]`, the plain
mushroom, instead of `without`. From g = 3.5 on the stripes have a second colour, as the teacher's do, where pushing away
from nothing at all leaves the cap red and white. FLUX.1-dev cannot do this: its student has learned the empty prompt
only.
"""
