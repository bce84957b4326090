"""The autoencoder against diffusers' `AutoencoderKL`, on shrunk random configurations and at full size."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxpa.config import AutoencoderConfig
from jaxpa.encoders.autoencoder import Autoencoder, GroupNorm, Posterior

CONFIGS = {
    # Groups and widths with odd factors, one width repeated (no shortcut), an odd latent width.
    "odd groups": AutoencoderConfig(
        latent_channels=5, block_out_channels=(9, 15, 15), norm_num_groups=3, layers_per_block=2
    ),
    "one layer, no attention": AutoencoderConfig(
        latent_channels=4,
        block_out_channels=(10, 5),
        norm_num_groups=5,
        layers_per_block=1,
        mid_block_add_attention=False,
        scaling_factor=0.7,
        shift_factor=-0.2,
    ),
    "one block": AutoencoderConfig(latent_channels=3, block_out_channels=(14,), norm_num_groups=7, layers_per_block=3),
    "one group per channel": AutoencoderConfig(
        latent_channels=2, block_out_channels=(6, 12, 12, 12), norm_num_groups=6, layers_per_block=1
    ),
}
# Every kind of layer once: for what takes long to compile.
SMALL = AutoencoderConfig(latent_channels=2, block_out_channels=(3, 6), norm_num_groups=3, layers_per_block=1)
# Two float32 implementations; the largest difference seen is 2e-6 of the largest value.
TOLERANCE = 1e-5


def reference(config: AutoencoderConfig) -> Any:
    from diffusers import AutoencoderKL

    blocks = len(config.block_out_channels)
    return AutoencoderKL(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_num_groups,
        mid_block_add_attention=config.mid_block_add_attention,
        scaling_factor=config.scaling_factor,
        shift_factor=config.shift_factor,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()


def randomise(model: Any, seed: int = 0) -> None:
    """Weights that keep activations of order 1, and norms whose scale and bias matter."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim > 1:
                weight.copy_(noise / weight[0].numel() ** 0.5)
            else:
                weight.copy_(0.2 * noise + ("norm" in name and name.endswith("weight")))


def torch_name(path: tuple) -> str:
    name = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
    return re.sub(r"\.(kernel|scale)$", ".weight", name)


def flax_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(O, I, kh, kw) -> (kh, kw, I, O); (O, I) -> (I, O)."""
    return tuple(shape[2:]) + tuple(shape[1::-1]) if len(shape) > 1 else tuple(shape)


def transplant(config: AutoencoderConfig, weights: dict[str, Any]) -> Autoencoder:
    flat, tree = jax.tree_util.tree_flatten_with_path(jax.eval_shape(lambda: build(config)))
    names = [torch_name(path) for path, _ in flat]
    assert sorted(names) == sorted(weights)
    arrays = []
    for name, (_, leaf) in zip(names, flat, strict=True):
        array = weights[name].numpy()
        array = array.transpose(*range(2, array.ndim), 1, 0) if array.ndim > 1 else array
        assert array.shape == leaf.shape, name
        arrays.append(jnp.asarray(array))
    return jax.tree_util.tree_unflatten(tree, arrays)


def build(config: AutoencoderConfig, dtype: jnp.dtype = jnp.float32) -> Autoencoder:
    return Autoencoder(config, rngs=nnx.Rngs(0), dtype=dtype)


def pair(config: AutoencoderConfig) -> tuple[Any, Autoencoder]:
    theirs = reference(config)
    randomise(theirs)
    return theirs, transplant(config, theirs.state_dict())


def to_torch(x: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def to_numpy(x: Any) -> np.ndarray:
    return np.moveaxis(x.detach().numpy(), 1, -1)


def randomised(config: AutoencoderConfig, seed: int = 0) -> Autoencoder:
    """Ours alone, with weights of the same distribution as `randomise` gives."""
    rng = np.random.default_rng(seed)

    def fill(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        noise = rng.normal(size=leaf.shape)
        if leaf.ndim > 1:
            return jnp.asarray(noise / np.prod(leaf.shape[:-1]) ** 0.5, leaf.dtype)
        return jnp.asarray(0.2 * noise + torch_name(path).endswith("norm.weight"), leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(lambda: build(config)))


def pictures(config: AutoencoderConfig, height: int = 3, width: int = 5) -> np.ndarray:
    """Two pictures of a size that is neither square nor even in latent cells."""
    shape = (2, height * config.downscale, width * config.downscale, config.in_channels)
    return np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)


def assert_close(ours: jax.Array, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * max(1.0, np.abs(theirs).max()))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_encode_and_decode_equal_diffusers(torch, config):
    theirs, ours = pair(config)
    images = pictures(config)
    posterior = jax.jit(Autoencoder.encode)(ours, images)
    with torch.no_grad():
        expected = theirs.encode(to_torch(images)).latent_dist
    assert_close(posterior.mean, to_numpy(expected.mean))
    assert_close(posterior.logvar, to_numpy(expected.logvar))

    z = np.random.default_rng(2).normal(size=posterior.mean.shape).astype(np.float32)
    with torch.no_grad():
        expected = theirs.decode(to_torch(z)).sample
    assert_close(jax.jit(Autoencoder.decode)(ours, z), to_numpy(expected))


def test_parts_equal_diffusers(torch):
    config = CONFIGS["odd groups"]
    theirs, ours = pair(config)
    x = np.random.default_rng(3).normal(size=(2, 6, 10, 9)).astype(np.float32)
    wide = np.random.default_rng(4).normal(size=(2, 3, 5, 15)).astype(np.float32)
    parts = [
        (ours.encoder.down_blocks[0].resnets[1], theirs.encoder.down_blocks[0].resnets[1], x, (None,)),
        (ours.encoder.down_blocks[0].downsamplers[0], theirs.encoder.down_blocks[0].downsamplers[0], x, ()),
        (ours.encoder.down_blocks[1].resnets[0], theirs.encoder.down_blocks[1].resnets[0], x, (None,)),
        (ours.encoder.mid_block.attentions[0], theirs.encoder.mid_block.attentions[0], wide, ()),
        (ours.encoder.mid_block, theirs.encoder.mid_block, wide, ()),
        (ours.decoder.up_blocks[0].upsamplers[0], theirs.decoder.up_blocks[0].upsamplers[0], wide, ()),
        (ours.decoder.up_blocks[0], theirs.decoder.up_blocks[0], wide, ()),
        (ours.decoder.up_blocks[2], theirs.decoder.up_blocks[2], wide, ()),
        (ours.decoder.conv_norm_out, theirs.decoder.conv_norm_out, x, ()),
    ]
    for our_part, their_part, value, rest in parts:
        with torch.no_grad():
            expected = their_part(to_torch(value), *rest)
        assert_close(our_part(value), to_numpy(expected))


def test_group_norm_far_from_zero(torch):
    """The variance of values around 1000 is not lost to cancellation; constant groups stay finite."""
    x = 1000 + np.random.default_rng(5).normal(size=(2, 5, 3, 6)).astype(np.float32)
    expected = torch.nn.functional.group_norm(to_torch(x).double(), 3, eps=1e-6)
    np.testing.assert_allclose(GroupNorm(6, 3)(x), to_numpy(expected), atol=2e-4)  # 1000 has an ulp of 6e-5
    np.testing.assert_array_equal(GroupNorm(6, 3)(np.full_like(x, 7.0)), 0)


def test_latents_are_shifted_and_scaled():
    config = CONFIGS["one layer, no attention"]
    ours = randomised(config)
    images, key = pictures(config), jax.random.key(0)
    posterior = jax.jit(Autoencoder.encode)(ours, images)
    encode = jax.jit(Autoencoder.encode_latents)
    for latents, z in [
        (encode(ours, images), posterior.mode()),
        (encode(ours, images, key), posterior.sample(key)),
    ]:
        np.testing.assert_allclose(latents, (z - config.shift_factor) * config.scaling_factor, atol=1e-5)
        decoded = jax.jit(Autoencoder.decode_latents)(ours, latents)
        np.testing.assert_allclose(decoded, jax.jit(Autoencoder.decode)(ours, z), atol=1e-4)


def test_samples_have_the_posterior_moments():
    mean, logvar = jnp.array([-2.0, 0.5]), jnp.array([-3.0, 1.0])
    shape = (1, 100, 200, 2)
    posterior = Posterior(jnp.broadcast_to(mean, shape), jnp.broadcast_to(logvar, shape))
    drawn = posterior.sample(jax.random.key(1))
    np.testing.assert_array_equal(posterior.mode(), posterior.mean)
    # 20,000 draws: five standard errors of a mean are 0.035 deviations, of a deviation 0.025.
    np.testing.assert_allclose(drawn.mean((0, 1, 2)), mean, atol=0.035 * np.exp(0.5))
    np.testing.assert_allclose(drawn.std((0, 1, 2)), jnp.exp(0.5 * logvar), rtol=0.025)
    np.testing.assert_array_equal(drawn, posterior.sample(jax.random.key(1)))


def test_log_variance_is_clamped():
    config = CONFIGS["one block"]
    model = randomised(config)
    model.encoder.conv_out.bias[...] = jnp.array([0.0] * 3 + [1e3, -1e3, 0.0])
    logvar = jax.jit(Autoencoder.encode)(model, pictures(config)).logvar
    assert jnp.all(logvar[..., 0] == 20)
    assert jnp.all(logvar[..., 1] == -30)
    assert jnp.all(jnp.abs(logvar[..., 2]) < 20)


def test_bfloat16_computes_in_bfloat16_and_returns_float32():
    config = SMALL
    ours = randomised(config)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), ours)
    images = pictures(config)
    moments = jax.eval_shape(half.encoder, jax.ShapeDtypeStruct(images.shape, jnp.bfloat16))
    assert moments.dtype == jnp.bfloat16
    encode, decode = jax.jit(Autoencoder.encode_latents), jax.jit(Autoencoder.decode_latents)
    latents = encode(half, images)
    decoded = decode(half, latents)
    assert latents.dtype == decoded.dtype == jnp.float32
    exact = encode(ours, images)
    # bfloat16 keeps 8 bits; some thirty roundings in a row add up to a few percent of the signal.
    assert jnp.sqrt(jnp.mean((latents - exact) ** 2)) < 0.05 * exact.std()
    exact = decode(ours, latents)
    assert jnp.sqrt(jnp.mean((decoded - exact) ** 2)) < 0.05 * exact.std()


def test_gradients_reach_every_parameter():
    config = SMALL
    images = pictures(config)

    @jax.jit
    def gradient(model, key):
        def loss(model):
            posterior = model.encode(images)
            return jnp.mean((model.decode(posterior.sample(key)) - images) ** 2)

        return jax.value_and_grad(loss)(model)

    value, gradients = gradient(randomised(config), jax.random.key(0))
    assert jnp.isfinite(value)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert jnp.all(jnp.isfinite(leaf)), torch_name(path)
        # Softmax ignores what is the same for all keys, so the keys' bias alone has no gradient.
        assert jnp.any(leaf != 0) or torch_name(path).endswith("to_k.bias"), torch_name(path)


def test_wrong_sizes_are_errors():
    model = jax.eval_shape(lambda: build(CONFIGS["odd groups"]))
    with pytest.raises(ValueError, match=r"10x12.*multiples of 4"):
        model.encode(jnp.zeros((1, 10, 12, 3)))
    with pytest.raises(ValueError, match=r"block_out_channels \(6,\) must be multiples of norm_num_groups 4"):
        AutoencoderConfig(block_out_channels=(6,), norm_num_groups=4)
    with pytest.raises(ValueError, match="4 does not divide 6"):
        GroupNorm(6, 4)


def test_full_size_has_the_tensors_of_the_reference(torch):
    config = AutoencoderConfig()
    with torch.device("meta"):
        theirs = {name: tuple(weight.shape) for name, weight in reference(config).state_dict().items()}
    ours = jax.eval_shape(lambda: build(config, jnp.bfloat16))
    leaves = jax.tree_util.tree_leaves_with_path(ours)
    assert {torch_name(path): leaf.shape for path, leaf in leaves} == {
        name: flax_shape(shape) for name, shape in theirs.items()
    }
    assert len(theirs) == 244
    assert sum(leaf.size for _, leaf in leaves) == 83_819_683
    assert all(leaf.dtype == jnp.bfloat16 for _, leaf in leaves)

    image = jax.ShapeDtypeStruct((1, 1024, 768, 3), jnp.float32)
    latents = jax.eval_shape(Autoencoder.encode_latents, ours, image)
    assert latents.shape == (1, 128, 96, 16)
    assert jax.eval_shape(Autoencoder.decode_latents, ours, latents).shape == image.shape
