# %% [markdown]
"""
# 7. The flow and its times

Training teaches the velocity of straight lines from data x0 to noise e. Sampling follows it from t = 1 to t = 0 (Lipman
et al. 2023):

    x_t = (1 - t) x0 + t e,   v(x_t, t) = e - x0,   one Euler step is  x += (t_next - t) v
    t = k u / (1 + (k - 1) u),  u = 1 - i / S,  k = e^mu,  mu growing with the number of tokens  (Esser et al. 2024)

The more tokens a picture has, the longer its schedule stays near noise: neighbours share what they show, so more noise
is needed to hide as much.

    python examples/07_flow.py
"""

# %%
from itertools import pairwise
from typing import Any

import numpy as np
from _show import ask, drawn, figure, picture, save, stack

import jaxpa
from jaxpa.config import ScheduleConfig
from jaxpa.media.figures import sheet
from jaxpa.schedule import flow_times

PROMPT = "a red striped mushroom in a forest"
SEED = 1
SHOWN = (0, 7, 14, 20, 24, 28)  # of 28 steps

# %% [markdown]
"""
## By hand

The schedule, and Euler's steps along the network's velocity. On the way x - t v is where the velocity would end.
"""


# %%
def times_of(steps: int, tokens: int) -> np.ndarray:
    """mu is 0.5 at 256 tokens and 1.15 at 4096, and linear in between."""
    k = np.exp(0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256))
    u = 1 - np.arange(steps + 1) / steps
    return k * u / (1 + (k - 1) * u)


def follow(velocity: Any, x: np.ndarray, times: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """x (1, N, C) at every time, and its guess x - t v."""
    states, guesses = [x], []
    for t, t_next in pairwise(times):
        v = ask(velocity, x, t)
        guesses.append(x - t * v)
        x = x + (t_next - t) * v
        states.append(x)
    return states, [*guesses, x]  # at t = 0 both are the picture, and nobody need be asked


# %%
pipe = jaxpa.load("mini")
text, times = pipe.encode_text([PROMPT]), times_of(28, 144)
print(f"times by hand and by jaxpa: {np.abs(times - pipe.times(28, (12, 12))).max():.1g} apart")
noise = np.asarray(pipe.noise(np.array([SEED], np.uint32), (12, 12)))  # (1, 144, 32)
states, guesses = follow(pipe.velocity(text), noise, times)
by_hand, whole = pipe.decode(states[-1])[0], pipe.generate(PROMPT, seed=SEED)[0]  # type: ignore[arg-type]
print(f"the picture by hand and by jaxpa: {np.abs(np.asarray(by_hand, int) - np.asarray(whole)).max()} levels apart")

# %%
x0 = np.asarray(pipe.encode_image(picture("boat")))
path = [(1 - t) * x0 + t * noise for t in times]  # what training shows to the model
rows = []
for name, way in (("data and noise", path), ("sampling", states), ("x - t v", guesses)):
    pictures = pipe.decode(np.concatenate([way[i] for i in SHOWN]))  # type: ignore[arg-type]
    rows.append([(f"{name}\nt = {times[i]:.2f}", image) for i, image in zip(SHOWN, pictures, strict=True)])
counts = (1, 2, 4, 8, 28, 56)
made = [follow(pipe.velocity(text), noise, times_of(n, 144))[0][-1] for n in counts]
pictures = pipe.decode(np.concatenate(made))  # type: ignore[arg-type]
rows.append([(f"{n} step{'s' * (n > 1)}", image) for n, image in zip(counts, pictures, strict=True)])

# %%
curves, (axis,) = figure(7.5, 2.4)
for tokens, name in ((144, "144 tokens (here)"), (1024, "1024 (512 x 512)"), (4096, "4096 (1024 x 1024)")):
    axis.plot(times_of(28, tokens), marker=".", label=name)
axis.plot(flow_times(28, 4096, ScheduleConfig(use_dynamic_shifting=False)), color="grey", ls="--", label="no shift")
axis.set(xlabel="step", ylabel="flow time t", xlim=(0, 28), ylim=(0, 1))
axis.legend(frameon=False)
save(stack(drawn(curves), sheet(rows, 112)), "07-flow")

# %% [markdown]
"""
## Change something

In the last row, give the few tokens the times of many (`times_of(n, 4096)`). With two and four steps the picture gets
worse: the last one then has to go from t = 0.76 or 0.51 to 0 at once. With eight there is hardly a difference to see. A
schedule matters where steps are few, and to a picture of 4096 tokens, in which a step too long near noise decides more.
"""
