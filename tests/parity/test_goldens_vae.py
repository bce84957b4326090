"""The autoencoder against the goldens of diffusers' `AutoencoderKL`: every tensor, both directions."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpa.checkpoint.load import load_component
from jaxpa.encoders.autoencoder import Autoencoder
from jaxpa.tokens import grid_positions, patchify, unpatchify

pytestmark = pytest.mark.usefixtures("as_users_compile")
# Of the largest value. Float32 on both sides differs by 2e-6 here (2.4e-5 on moments of up to 12); wider networks
# sum more terms.
RELATIVE = 1e-5


@pytest.fixture(scope="module")
def vae(goldens):
    return load_component(goldens.path / "flux-dev-tiny" / "vae", dtype=jnp.float32)


@pytest.fixture(scope="module")
def tensors(goldens):
    return goldens.load("vae.safetensors")


def groups(tensors) -> list[str]:
    return sorted({name.split("/")[0] for name in tensors})


def sizes(tensors) -> list[str]:
    found = [group for group in groups(tensors) if re.fullmatch(r"\d+x\d+", group)]
    assert found
    return found


def channels_last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, 1, -1)


def close(got: jax.Array, want: np.ndarray) -> None:
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=RELATIVE * max(1.0, float(np.abs(want).max())))


def test_every_tensor_is_used(tensors):
    per_size = {"image_u8", "image", "posterior_mean", "posterior_logvar", "latents", "packed", "decoded",
                "decoded_u8", "img_ids"}  # fmt: skip
    expected = {f"{size}/{name}" for size in sizes(tensors) for name in per_size}
    assert set(tensors) == expected | {"rand/z", "rand/decoded"}


def test_encoding(vae, tensors):
    for size in sizes(tensors):
        image = channels_last(tensors[f"{size}/image"])
        # Bytes to [-1, 1]: division and subtraction, rounded in this order, are the reference's to the bit.
        np.testing.assert_array_equal(tensors[f"{size}/image_u8"][None] / np.float32(127.5) - 1, image)
        posterior = jax.jit(Autoencoder.encode)(vae, image)
        close(posterior.mean, channels_last(tensors[f"{size}/posterior_mean"]))
        close(posterior.logvar, channels_last(tensors[f"{size}/posterior_logvar"]))
        close(jax.jit(Autoencoder.encode_latents)(vae, image), channels_last(tensors[f"{size}/latents"]))


def test_packing(tensors):
    for size in sizes(tensors):
        latents, packed = channels_last(tensors[f"{size}/latents"]), tensors[f"{size}/packed"]
        h, w = latents.shape[1] // 2, latents.shape[2] // 2
        np.testing.assert_array_equal(patchify(jnp.asarray(latents)), packed)
        np.testing.assert_array_equal(unpatchify(jnp.asarray(packed), h, w), latents)
        ids = tensors[f"{size}/img_ids"]
        np.testing.assert_array_equal(grid_positions(h, w), ids)
        assert not ids[:, 0].any()


def test_decoding(vae, tensors):
    for size in sizes(tensors):
        latents = channels_last(tensors[f"{size}/latents"])
        decoded = jax.jit(Autoencoder.decode_latents)(vae, latents)
        want = channels_last(tensors[f"{size}/decoded"])
        close(decoded, want)
        # A byte may round the other way where the value lies that close to a half.
        scaled = np.clip(np.asarray(decoded[0]) / 2 + 0.5, 0, 1) * 255
        bytes_want = tensors[f"{size}/decoded_u8"].astype(np.float32)
        assert np.abs(scaled - bytes_want).max() <= 0.5 + 255 * RELATIVE * max(1.0, float(np.abs(want).max()))


def test_decoding_noise(vae, tensors):
    """`rand/z` is noise in the transformer's latents: a batch of two, far from any encoded picture."""
    decoded = jax.jit(Autoencoder.decode_latents)(vae, channels_last(tensors["rand/z"]))
    close(decoded, channels_last(tensors["rand/decoded"]))
