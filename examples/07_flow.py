"""The flow from noise to data, its times, and what steps and guidance do.

Training teaches the velocity of straight lines. Sampling follows it from t = 1 to t = 0 (Lipman et al. 2023):

    x_t = (1 - t) x0 + t e,   v(x_t, t) = e - x0,   one Euler step is  x += (t_next - t) v
    t = k u / (1 + (k - 1) u),  u = 1 - i / S,  k = e^mu,  mu growing with the number of tokens  (Esser et al. 2024)

The more tokens a picture has, the longer its schedule stays near noise. Guidance (Ho and Salimans 2022) exaggerates
what the prompt changes: v = v_without + g (v_with - v_without).

    python examples/07_flow.py
"""

import io

import jax
import numpy as np
from _show import PICTURES, save, stack
from matplotlib.figure import Figure
from PIL import Image

import jaxpa
from jaxpa.config import ScheduleConfig
from jaxpa.media.figures import sheet
from jaxpa.sampling import Velocity
from jaxpa.schedule import flow_times

PROMPT = "a red striped mushroom in a forest"
SEED = 1
SHOWN = (0, 7, 14, 20, 24, 28)  # of 28 steps


def curves() -> Image.Image:
    """Flow time against step for several grids."""
    figure = Figure(figsize=(7.5, 2.4), dpi=100, layout="constrained")
    axes = figure.subplots()
    for tokens, name in ((144, "144 tokens (here)"), (1024, "1024 (512 x 512)"), (4096, "4096 (1024 x 1024)")):
        axes.plot(flow_times(28, tokens, ScheduleConfig()), marker=".", label=name)
    axes.plot(flow_times(28, 4096, ScheduleConfig(use_dynamic_shifting=False)), color="grey", ls="--", label="no shift")
    axes.set(xlabel="step", ylabel="flow time t", xlim=(0, 28), ylim=(0, 1))
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer)
    return Image.open(buffer).convert("RGB")


ask = jax.jit(lambda velocity, x, t: velocity(x, t))  # x (B, N, C), t (B,) -> (B, N, C)


def follow(velocity: Velocity, x: jax.Array, times: np.ndarray) -> tuple[list[jax.Array], list[jax.Array]]:
    """Euler steps: x at every time, and where its velocity would end at once, x - t v."""
    states, guesses = [], []
    for t, t_next in zip(times, [*times[1:], 0.0], strict=True):
        v = ask(velocity, x, np.full(1, t, np.float32))
        states.append(x)
        guesses.append(x - t * v)
        x = x + (t_next - t) * v
    return states, guesses


def main() -> None:
    pipe = jaxpa.load("mini")
    times, text = pipe.times(28, (12, 12)), pipe.encode_text([PROMPT])
    noise = pipe.noise(np.array([SEED], np.uint32), (12, 12))  # (1, 144, 32)

    picture = Image.open(PICTURES / "boat.png").convert("RGB").resize((96, 96), Image.Resampling.LANCZOS)
    x0 = pipe.encode_image(picture)
    path = [(1 - t) * x0 + t * noise for t in times]  # what training shows to the model
    states, guesses = follow(pipe.velocity(text), noise, times)

    rows = []
    for name, way in (("data and noise", path), ("sampling", states), ("x - t v", guesses)):
        pictures = pipe.decode(np.concatenate([way[i] for i in SHOWN]))  # type: ignore[arg-type]
        rows.append([(f"{name}\nt = {times[i]:.2f}", image) for i, image in zip(SHOWN, pictures, strict=True)])

    def row(name: str, values: tuple[float, ...], made: list[jax.Array]) -> list[tuple[str, Image.Image]]:
        pictures = pipe.decode(np.concatenate(made))  # type: ignore[arg-type]
        return [(f"{name} {value:g}", image) for value, image in zip(values, pictures, strict=True)]

    steps, scales = (1, 2, 4, 8, 28, 56), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0)
    rows.append(
        row("steps", steps, [follow(pipe.velocity(text), noise, pipe.times(n, (12, 12)))[0][-1] for n in steps])
    )
    rows.append(row("guidance", scales, [follow(pipe.velocity(text, guidance=g), noise, times)[0][-1] for g in scales]))
    save(stack(curves(), sheet(rows, 112)), "07-flow")


if __name__ == "__main__":
    main()
