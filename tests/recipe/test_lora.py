"""A LoRA of the recipe: it learns, and its file is what was learnt."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from small_checkpoint import CONFIG, make

from jaxpa.adapters.lay import adapt
from jaxpa.adapters.spec import Lora
from jaxpa.checkpoint.load import load_parts
from jaxpa.checkpoint.source import resolve
from jaxpa.lowrank import LowRank
from jaxpa.tokens import grid_positions
from weights.recipe import lora


def test_a_trained_file_loads_as_it_was_learnt(tmp_path):
    folder, c, rng = make(tmp_path / "small"), CONFIG.transformer, np.random.default_rng(0)
    network: Any = load_parts(folder, dtype=np.float32, parts=("transformer",)).transformer
    shapes = ((2, 6, c.in_channels), (2, 5, c.joint_attention_dim), (2, c.pooled_projection_dim))
    data = lora.Examples(*(jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes), grid_positions(2, 3))
    start = lora.initial(network, 2, 0)
    factors = lora.train(network, data, rank=2, steps=20, batch=4, rate=1e-2)
    key = jax.random.key(5)
    before, after = (float(lora.loss(each, network, data, key, 16)) for each in (start, factors))
    assert after < before

    lora.save(tmp_path / "lora.safetensors", network, factors)
    found = adapt(resolve(folder), [Lora(str(tmp_path / "lora.safetensors"))], True)
    loaded = load_parts(found, dtype=np.float32, parts=("transformer",)).transformer
    is_kernel = lambda x: isinstance(x, LowRank)  # noqa: E731
    pairs = zip(jax.tree.leaves(loaded, is_leaf=is_kernel),
                jax.tree.leaves(lora.changed(network, factors), is_leaf=is_kernel), strict=True)  # fmt: skip
    kernels = [pair for pair in pairs if is_kernel(pair[0])]
    assert len(kernels) == len(factors) == 11
    for got, want in kernels:
        np.testing.assert_allclose(got.down @ got.up, want.down @ want.up, atol=1e-6)


def test_five_pictures_of_one_subject():
    pictures, captions = lora.drawn(5, 0)
    assert len({caption.partition("mug")[2] for caption in captions}) == len(pictures) == 5
    assert {caption.partition(" mug")[0] for caption in captions} == {"a red striped"}
