"""Checkpoints that load: every layout, bit for bit, and how much memory that takes."""

import json
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from small_checkpoint import CONFIG, FILES, make, rewrite, same, shard

from jaxpa.checkpoint import load as checkpoint
from jaxpa.checkpoint.convert import convert
from jaxpa.checkpoint.files import read_header
from jaxpa.checkpoint.keys import COMPONENTS, leaves
from jaxpa.checkpoint.load import load_component, load_parts
from jaxpa.checkpoint.report import info
from jaxpa.config import ScheduleConfig, TransformerConfig
from jaxpa.errors import CheckpointError
from jaxpa.transformer import Flux


@pytest.fixture
def folder(tmp_path):
    return make(tmp_path / "flux")


def test_structure_is_the_constructors(folder):
    """A loaded module runs the programs of a made one: the same tree, shapes and types."""
    loaded = load_component(folder / "transformer")
    made = jax.eval_shape(lambda: Flux(CONFIG.transformer, rngs=nnx.Rngs(0)))
    count = []
    program = jax.jit(lambda model: count.append(1) or model.img_in.kernel[0, 0])
    for model in (jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), made), loaded):
        program(model)
    assert jax.tree_util.tree_structure(loaded) == jax.tree_util.tree_structure(made)
    assert len(count) == 1


def test_pipeline(folder):
    (folder / "jaxpa.json").write_text(json.dumps({"preset": "mini", "size": 96}))
    parts = load_parts(folder)
    assert parts.config.transformer == CONFIG.transformer
    assert parts.config.scheduler == ScheduleConfig(shift=3.0, base_shift=0.25)
    assert parts.settings.preset == "mini"
    assert parts.settings.max_length == 512
    assert parts.tokenizers == {name: folder / name for name in ("tokenizer", "tokenizer_2")}


def test_shards(folder):
    whole = load_component(folder / "transformer")
    shard(folder)
    assert same(load_component(folder / "transformer"), whole)


@pytest.mark.parametrize("stored", [np.float16, jnp.bfloat16, np.float64])
def test_casts(folder, stored):
    """Numbers are rounded once, from the stored type to the wanted one."""
    rewrite(folder / "vae" / FILES["vae"], lambda t: {k: v.astype(stored) for k, v in t.items()})
    kernel = load_file(folder / "vae" / FILES["vae"])["encoder.conv_in.weight"].transpose(2, 3, 1, 0)
    for dtype in (jnp.float32, jnp.bfloat16):
        loaded = load_component(folder / "vae", dtype=dtype)
        np.testing.assert_array_equal(loaded.encoder.conv_in.kernel[...], kernel.astype(dtype))
    assert load_component(folder / "vae").encoder.conv_in.kernel.dtype == checkpoint.default_dtype() == jnp.float32


def test_widens_on_the_device(folder, monkeypatch):
    """On an accelerator half precision crosses the bus as it is stored."""
    want = load_component(folder / "text_encoder", dtype=jnp.bfloat16)
    path = folder / "text_encoder" / FILES["text_encoder"]
    rewrite(path, lambda t: {k: v.astype(jnp.bfloat16) for k, v in t.items()})
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert checkpoint.default_dtype() == jnp.bfloat16
    seen = []
    place = checkpoint._place
    monkeypatch.setattr(checkpoint, "_place", lambda x, where: seen.append(x.dtype) or place(x, where))
    got = load_component(folder / "text_encoder", dtype=jnp.float32)
    assert set(seen) == {np.dtype(jnp.bfloat16)}
    assert all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True))


def test_sharding(folder):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    asked = []
    got = load_component(folder / "transformer", sharding=lambda *leaf: asked.append(leaf) or device)
    assert same(got, load_component(folder / "transformer", sharding=device))
    assert ("transformer", "double_blocks.img.qkv.q.kernel", (2, 16, 16)) in asked


def test_text_encoder_names(folder):
    """CLIP with its prefix and index buffer; T5 with its embedding twice, or under the other name only."""
    clip, t5 = (load_component(folder / name) for name in ("text_encoder", "text_encoder_2"))
    ids = {"text_model.embeddings.position_ids": np.arange(12)[None]}
    rewrite(folder / "text_encoder" / "model.safetensors", lambda t: {f"text_model.{k}": v for k, v in t.items()} | ids)
    assert same(load_component(folder / "text_encoder"), clip)
    path = folder / "text_encoder_2" / "model.safetensors"
    rewrite(path, lambda t: t | {"encoder.embed_tokens.weight": t["shared.weight"].copy()})
    assert same(load_component(folder / "text_encoder_2"), t5)
    rewrite(path, lambda t: t.pop("shared.weight") is None)
    assert same(load_component(folder / "text_encoder_2"), t5)


def test_never_two_copies(tmp_path):
    """Of the host's memory loading takes no more than the model, which jax may keep where it is, and one parameter."""
    config = TransformerConfig(num_layers=4, num_single_layers=8, num_attention_heads=2, joint_attention_dim=64)
    shapes = {k: s[0] for leaf in leaves("transformer", config, "diffusers") for k, s in leaf.expected().items()}
    save_file({k: np.ones(s, jnp.bfloat16) for k, s in shapes.items()}, tmp_path / "model.safetensors")
    values = vars(config) | {"_class_name": "FluxTransformer2DModel"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    plan = leaves("transformer", config, "diffusers")
    load_component(tmp_path, dtype=jnp.bfloat16)  # what jax and numpy import and cache on the way
    tracemalloc.start()
    load_component(tmp_path, dtype=jnp.bfloat16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    model, largest = 2 * sum(leaf.size for leaf in plan), 2 * max(leaf.size for leaf in plan)
    assert peak < model + largest + 4e6


def test_convert_round_trip(folder, tmp_path):
    before = load_parts(folder)
    heard = []
    out = convert(folder, tmp_path / "converted", progress=lambda *args: heard.append(args))
    after = load_parts(out)
    assert after.config == before.config
    assert all(same(getattr(after, name), getattr(before, name)) for name in COMPONENTS)
    assert {path.name for path in after.tokenizers.values()} == {"tokenizer", "tokenizer_2"}
    assert [last for last in heard if last[1] == last[2]][-1][0] == "text_encoder_2"
    content = info(out)
    assert content["layout"] == "jaxpa"
    assert content["loads"]
    assert not list(tmp_path.glob(".*"))
    # Again, from the converted folder; and one component of it alone.
    assert same(load_component(convert(out, tmp_path / "again") / "vae"), before.vae)
    tensors, _, _ = read_header(out / "transformer" / "model.safetensors")
    assert all(t.start % 64 == 0 for t in tensors.values() if t.size % 64 == 0)
    assert tensors["double_blocks.img.qkv.kernel"].shape == (2, 16, 48)


def test_converted_is_mapped(folder, tmp_path, monkeypatch):
    """What goes to the device from a converted folder are the file's own pages: nothing is transposed or copied."""
    out = convert(folder, tmp_path / "converted")
    seen: list[np.ndarray] = []
    monkeypatch.setattr(checkpoint, "_place", lambda x, where: seen.append(x) or jnp.asarray(x))
    load_component(out / "transformer")
    assert len(seen) == len(leaves("transformer", CONFIG.transformer, "jaxpa"))
    assert not any(x.flags.owndata or x.flags.writeable for x in seen)


def test_convert_casts(folder, tmp_path):
    out = convert(folder, tmp_path / "half", dtype=jnp.bfloat16)
    assert set(info(out)["components"]["transformer"]["dtypes"]) == {"BF16"}
    want = load_component(folder / "transformer", dtype=jnp.bfloat16)
    assert same(load_component(out / "transformer", dtype=jnp.bfloat16), want)


def test_convert_leaves_nothing_half_written(folder, tmp_path):
    def fill(tensors):
        tensors["x_embedder.weight"][0, 0] = np.nan

    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    with pytest.raises(CheckpointError, match="not empty"):
        convert(folder, taken)
    with pytest.raises(CheckpointError, match="does not exist"):
        convert(folder, tmp_path / "no" / "where")
    rewrite(folder / "transformer" / FILES["transformer"], fill)
    with pytest.raises(CheckpointError, match=r"x_embedder\.weight"):
        convert(folder, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"flux", "taken"}
