"""The autoencoder's stage of the recipe: the scale of its latents."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxpa.config import AutoencoderConfig
from jaxpa.encoders.autoencoder import Autoencoder
from weights.recipe.autoencoder import normalise

CONFIG = AutoencoderConfig(latent_channels=3, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2)


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any, np.ndarray]:
    """An autoencoder whose channels differ in mean and scale, the same one normalised, and pictures."""
    model: Any = Autoencoder(CONFIG, rngs=nnx.Rngs(0))
    out = model.encoder.conv_out
    uneven, means = jnp.array([1.0, 4.0, 9.0, 1.0, 1.0, 1.0]), jnp.array([2.0, -1.0, 0.5, -3.0, -2.0, -1.0])
    out.kernel, out.bias = nnx.Param(out.kernel[...] * uneven), nnx.Param(out.bias[...] + means)
    images = np.random.default_rng(1).uniform(-1, 1, (16, 16, 16, 3)).astype(np.float32)
    return model, normalise(model, images), images


def test_latents_have_one_scale(models):
    model, scaled, images = models
    before, after = (np.asarray(each.encode(images).mean) for each in (model, scaled))
    np.testing.assert_allclose(after.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(np.mean(after**2), 1, rtol=1e-5)
    spread = before.std((0, 1, 2))
    np.testing.assert_allclose(after.std((0, 1, 2)), spread / np.sqrt(np.mean(spread**2)), rtol=1e-4)


def test_what_was_normalised_decodes_as_before(models):
    """The decoder's first convolution gives what it gave, but at the rim, where it sees zeros; so does the noise."""
    model, scaled, images = models
    for key in (None, jax.random.key(3)):
        given = []
        for each in (model, scaled):
            posterior = each.encode(images)
            given.append(each.decoder.conv_in(posterior.mean if key is None else posterior.sample(key))[:, 1:-1, 1:-1])
        np.testing.assert_allclose(given[0], given[1], rtol=1e-4, atol=1e-4)
