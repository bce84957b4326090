# %% [markdown]
"""
# 8. Guidance, classifier-free and distilled

Trained on pictures and their captions, a network follows a prompt too loosely. Classifier-free guidance (Ho and
Salimans 2022) asks twice, with the prompt and without, and exaggerates the difference:

    v = v_with + (g - 1) (v_with - v_without)

g = 1 is the prompt's own velocity. That costs two forwards a step. FLUX.1-dev and the embedded model are distilled
(Meng et al. 2023): a student has learned to give the guided velocity at once, and g is one of its inputs, embedded like
the time; it costs one. At g = 1 it is still the plain network, so both ways can be compared here.

The embedded model's teacher has two more differences. The empty prompt alone pulls stripes towards one colour, so other
patterns push back; and a smaller network that has learned less makes the teacher's mistakes, but larger ones, so away
from it drawings are whole (autoguidance, Karras et al. 2024):

    v = v_with + (g - 1) [(v_with - v_without) (t <= 0.8) + 1.25 (v_with - v_other) + 0.75 (v_with - v_weak)]

    other: another pattern      weak: the smaller network, asked with the prompt

The student is all that is left of both networks. So the teacher is drawn here with the first two differences, and what
the student does beyond them is the third.

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


def two_differences(x: np.ndarray, t: float, g: float) -> np.ndarray:
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
for name, way in (("classifier-free", classifier_free), ("two differences", two_differences), ("distilled", distilled)):
    for g in SCALES:
        states = [noise]
        for t, t_next in pairwise(times):
            states.append(states[-1] + (t_next - t) * way(states[-1], t, g))
        ways[name, g] = states
    pictures = pipe.decode(np.concatenate([ways[name, g][-1] for g in SCALES]))  # type: ignore[arg-type]
    panels.append([(f"{name}\ng = {g:g}", image) for g, image in zip(SCALES, pictures, strict=True)])

# %% [markdown]
"""
How much of the student's guidance is the third difference? Along the way of the two, what is left of the student's
velocity beside all that the two change (and in it, whatever the student failed to learn):
"""

# %%
curves, (axis,) = figure(7.6, 2.4)
for g in SCALES[1:]:
    rest = []
    for x, t in zip(ways["two differences", g][:-1], times[:-1], strict=True):
        v, plain = two_differences(x, t, g), ask(student[1.0], x, t)
        rest.append(np.linalg.norm(distilled(x, t, g) - v) / np.linalg.norm(v - plain))
    axis.plot(times[:-1], rest, marker=".", label=f"g = {g:g}")
axis.set(xlabel="flow time t", ylabel="rest / change", xlim=(1, 0), ylim=(0, None))
axis.legend(frameon=False, ncols=3, fontsize=8)
save(stack(sheet(panels, 160), drawn(curves)), "08-guidance")

# %% [markdown]
"""
## Change something

A negative prompt takes the place of the empty one: let `classifier_free` push away from `others[0]`, the plain
mushroom, instead of `without`. From g = 2 on the stripes have a second colour, as in the row below, where pushing away
from nothing at all leaves the cap red and white. At g = 5 the cap runs out of the picture: too much of one difference.
FLUX.1-dev cannot do this: its student has learned the empty prompt only.
"""
