"""Text to image against the goldens of diffusers' FluxPipeline: from the prompt and the noise to the picture."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpa.checkpoint.load import Parts, load_parts
from jaxpa.encoders.autoencoder import Autoencoder
from jaxpa.encoders.text import TextEmbedding, Tokenizers, encode
from jaxpa.sampling import sample
from jaxpa.schedule import flow_times
from jaxpa.tokens import PATCH, grid_positions, patchify, unpatchify
from jaxpa.transformer import FluxConditions, FluxVelocity

pytestmark = [
    pytest.mark.usefixtures("as_users_compile"),
    pytest.mark.filterwarnings("ignore:prompt"),  # one of them is longer than CLIP reads
]

GUIDANCE = 3.5  # of dev; schnell embeds none
# All are shares of the largest value. Two versions of the reference differ by 4e-6 in these latents; measured here:
# 2.6e-6 in a velocity, 2.3e-6 in latents and pictures, 3.7e-6 in T5's states.
TEXT, VELOCITY, LATENTS, PICTURE = 1e-5, 1e-5, 1e-5, 1e-5


@dataclass
class Run:
    """One stored generation and what it was made with."""

    parts: Parts
    tensors: dict[str, np.ndarray]  # without the size in front
    encoded: TextEmbedding  # of every prompt, at this run's length
    h: int  # tokens
    w: int

    @property
    def times(self) -> jax.Array:
        return jnp.asarray(flow_times(len(self.tensors["timesteps"]), self.h * self.w, self.parts.config.scheduler))

    def velocity(self, text: TextEmbedding) -> FluxVelocity:
        """The network of as many rows as there are texts."""
        guidance = jnp.full((len(text),), GUIDANCE) if self.parts.config.transformer.guidance_embeds else None
        return FluxConditions(text.txt, text.vec, guidance, grid_positions(self.h, self.w)).bind(self.parts.transformer)

    @property
    def stored_text(self) -> TextEmbedding:
        return TextEmbedding(jnp.asarray(self.tensors["prompt_embeds"]), jnp.asarray(self.tensors["pooled"]))


@pytest.fixture(scope="module", params=["dev", "schnell"])
def runs(request, goldens) -> dict[str, Run]:
    """Every size of a model's file."""
    parts = load_parts(goldens.path / f"flux-{request.param}-tiny", dtype=jnp.float32)
    tokenizers = Tokenizers.load(goldens.path / f"flux-{request.param}-tiny")
    tensors = goldens.load(f"t2i_{request.param}.safetensors")
    found: dict[str, Run] = {}
    encoded: dict[int, TextEmbedding] = {}
    for size in sorted({name.split("/")[0] for name in tensors}):
        own = {name.split("/")[1]: value for name, value in tensors.items() if name.startswith(f"{size}/")}
        length = own["prompt_embeds"].shape[1]
        if length not in encoded:
            encoded[length] = encode_all(parts, tokenizers, goldens.json("prompts.json"), length)
        h, w = (int(side) // (parts.config.vae.downscale * PATCH) for side in size.split("x"))
        found[size] = Run(parts, own, encoded[length], h, w)
    assert found
    return found


def encode_all(parts: Parts, tokenizers: Tokenizers, prompts: list[str], length: int) -> TextEmbedding:
    clip_ids, t5_ids, _ = tokenizers.tokenize(prompts, length)
    return encode(parts.text_encoder_2, parts.text_encoder, t5_ids, clip_ids)


def error(got: Any, want: np.ndarray) -> float:
    """The largest difference, in units of the largest value."""
    got = np.asarray(got)
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / max(1.0, np.abs(want).max()))


def channels_last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, 1, -1)


def prompt_of(run: Run) -> int:
    """Which prompt was drawn is not stored: the one whose embedding comes closest."""
    far = [error(one.txt, run.tensors["prompt_embeds"]) + error(one.vec, run.tensors["pooled"]) for one in run.encoded]
    return int(np.argmin(far))


def test_every_tensor_is_used(runs):
    names = {"noise_nchw", "noise_packed", "prompt_embeds", "pooled", "timesteps", "noise_pred", "step_latents",
             "final_latents", "image"}  # fmt: skip
    for run in runs.values():
        assert set(run.tensors) == names


def test_prompt_embedding(runs):
    for size, run in runs.items():
        at = prompt_of(run)
        assert error(run.encoded[at].txt, run.tensors["prompt_embeds"]) < TEXT, size
        assert error(run.encoded[at].vec, run.tensors["pooled"]) < TEXT, size
        others = [one for i, one in enumerate(run.encoded) if i != at]
        assert min(error(one.txt, run.tensors["prompt_embeds"]) for one in others) > 1e-2  # none of them would do


def test_noise_is_packed(runs):
    for run in runs.values():
        noise = patchify(jnp.asarray(channels_last(run.tensors["noise_nchw"])))
        np.testing.assert_array_equal(noise, run.tensors["noise_packed"])


def test_times(runs):
    for run in runs.values():
        np.testing.assert_allclose(run.times[:-1], run.tensors["timesteps"] / 1000, atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def fused():
    """The sampler as one program per size, whatever the bounds and times."""
    return jax.jit(sample)


def test_every_velocity_where_the_reference_stood(runs, fused):
    """From the stored text and latents at the stored times: no error is carried on. A step of width 1 adds v."""
    for size, run in runs.items():
        velocity = run.velocity(run.stored_text)
        stood = np.concatenate([run.tensors["noise_packed"], run.tensors["step_latents"][:-1]])
        for i, x in enumerate(stood):
            t = run.tensors["timesteps"][i] / np.float32(1000)  # as the reference rounds it
            times = jnp.zeros_like(run.times).at[:2].set([t, t + 1])
            v = fused(velocity, x[None], times, 0, 1)[0] - x
            assert error(v, run.tensors["noise_pred"][i]) < VELOCITY, f"{size}, step {i}"


def test_prompt_to_picture(runs, fused):
    """Our own prompt embedding and times: after each step, in one compiled loop, and decoded."""
    decode = jax.jit(Autoencoder.decode_latents)
    for size, run in runs.items():
        velocity, times = run.velocity(run.encoded[prompt_of(run)]), run.times
        noise = x = jnp.asarray(run.tensors["noise_packed"])
        for i, want in enumerate(run.tensors["step_latents"]):
            x = fused(velocity, x, times, i, i + 1)
            assert error(x[0], want) < LATENTS, f"{size}, step {i}"
        whole = fused(velocity, noise, times, 0, len(times) - 1)
        assert error(whole, run.tensors["final_latents"]) < LATENTS, size
        picture = np.clip(np.asarray(decode(run.parts.vae, unpatchify(whole, run.h, run.w))) / 2 + 0.5, 0, 1)
        assert error(picture, channels_last(run.tensors["image"])) < PICTURE, size
