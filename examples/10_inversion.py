"""From a picture to its noise, and back.

The flow can be walked backwards: from data, against the velocity, to the noise from which the model would make this
picture. RF inversion (Rout et al. 2024, Eq. 8) adds a pull towards a noise e of our choice:

    y += (t_next - t) [v(y, t) + gamma ((e - y) / (1 - t) - v(y, t))]        from t = 0 to t = 1

With gamma 0 this is the plain inversion, which leads back to the picture. With gamma 1 it forgets the picture and ends
at e, whatever the model says. The prompt is followed without guidance, because guidance bends the flow.

    python examples/10_inversion.py
    jaxpa invert --image examples/pictures/cat.png --prompt "a green dotted cat on a beach" --out cat.png
"""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from _show import PICTURES, save
from PIL import Image

import jaxpa
from jaxpa import inversion
from jaxpa.media.figures import sheet
from jaxpa.media.images import psnr
from jaxpa.sampling import Velocity

CAPTION = "a green dotted cat on a beach"
ask = jax.jit(lambda velocity, x, t: velocity(x, t))  # x (1, N, C), t (1,) -> (1, N, C)


def walk(velocity: Velocity, y: jax.Array, times: np.ndarray, e: jax.Array, gamma: float = 0.0) -> list[jax.Array]:
    """The equation above, asked at each step's noisier end. With gamma 0 times may fall: from noise to data."""
    states = [y]
    for t, t_next in pairwise(times):
        v = ask(velocity, y, np.full(1, max(t, t_next), np.float32))
        pull = gamma * ((e - y) / (1 - t) - v) if gamma else 0.0
        y = y + (t_next - t) * (v + pull)
        states.append(y)
    return states


def main() -> None:
    pipe = jaxpa.load("mini")
    picture = Image.open(PICTURES / "cat.png").convert("RGB").resize((96, 96), Image.Resampling.LANCZOS)
    x0 = pipe.encode_image(picture)  # (1, 144, 32)
    e = pipe.noise(np.array([7], np.uint32), (12, 12))
    velocity = pipe.velocity(pipe.encode_text([CAPTION]), guidance=1.0)

    falling = pipe.times(28, (12, 12))
    rising = falling[::-1]
    states = walk(velocity, x0, rising, e)
    compiled = jax.jit(inversion.invert)(velocity, x0, e, inversion.forward_times(falling), 0.0)
    print(f"by hand and by jaxpa.inversion.invert: {jnp.abs(compiled[-1] - states[-1]).max():.1g} apart")
    shown = (8, 16, 24, 28)
    ways = pipe.decode(jnp.concatenate([states[i] for i in shown]))
    rows = [
        [("the picture", picture)] + [(f"to noise\nt = {rising[i]:.2f}", w) for i, w in zip(shown, ways, strict=True)]
    ]

    def row(names: list[str], tokens: list[jax.Array]) -> None:
        images = pipe.decode(jnp.concatenate(tokens))
        rows.append([(f"{n}\n{psnr(picture, image):.1f} dB", image) for n, image in zip(names, images, strict=True)])

    counts, back = (7, 14, 28, 56), [x0]
    for steps in counts:
        times = pipe.times(steps, (12, 12))
        noise = walk(velocity, x0, times[::-1], e)[-1]
        back.append(walk(velocity, noise, times, e)[-1])
    row(["the autoencoder alone", *(f"{n} steps, there and back" for n in counts)], back)

    gammas = (0.0, 0.1, 0.25, 0.5, 1.0)
    noises = [walk(velocity, x0, rising, e, gamma)[-1] for gamma in gammas]
    likeness = [jnp.corrcoef(noise.ravel(), e.ravel())[0, 1] for noise in noises]
    names = [f"gamma {gamma:g}, noise like e: {like:.2f}" for gamma, like in zip(gammas, likeness, strict=True)]
    row(names, [walk(velocity, noise, falling, e)[-1] for noise in noises])
    save(sheet(rows, 192), "10-inversion")


if __name__ == "__main__":
    main()
