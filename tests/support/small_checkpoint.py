"""A small random FLUX pipeline on disk, and ways to damage it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxpa.checkpoint.keys import COMPONENTS, component, leaves
from jaxpa.checkpoint.load import load_component
from jaxpa.config import AutoencoderConfig, CLIPConfig, FluxConfig, T5Config, TransformerConfig
from jaxpa.errors import CheckpointError

CONFIG = FluxConfig(
    transformer=TransformerConfig(in_channels=16, num_layers=2, num_single_layers=2, num_attention_heads=2,
                                  attention_head_dim=8, joint_attention_dim=12, pooled_projection_dim=8,
                                  axes_dims_rope=(4, 2, 2)),
    vae=AutoencoderConfig(latent_channels=4, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2),
    text_encoder=CLIPConfig(vocab_size=30, hidden_size=8, intermediate_size=16, num_hidden_layers=2,
                            num_attention_heads=2, max_position_embeddings=12),
    text_encoder_2=T5Config(vocab_size=40, d_model=12, d_kv=4, d_ff=20, num_layers=2, num_heads=2),
)  # fmt: skip
FILES = {"transformer": "diffusion_pytorch_model.safetensors", "vae": "diffusion_pytorch_model.safetensors",
         "text_encoder": "model.safetensors", "text_encoder_2": "model.safetensors"}  # fmt: skip
SHARDS = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]


def numbers(name: str, dtype=np.float32) -> dict[str, np.ndarray]:
    """Random tensors under diffusers' names."""
    rng = np.random.default_rng(0)
    config = getattr(CONFIG, name)
    shapes = {k: s[0] for leaf in leaves(name, config, "diffusers") for k, s in leaf.expected().items()}
    return {key: rng.standard_normal(shape).astype(dtype) for key, shape in shapes.items()}


def make(root: Path) -> Path:
    """A small pipeline in diffusers' layout."""
    for name in COMPONENTS:
        (root / name).mkdir(parents=True)
        save_file(numbers(name), root / name / FILES[name])
        values = dict(vars(getattr(CONFIG, name)))
        kind = "architectures" if name.startswith("text") else "_class_name"
        class_name = component(name, getattr(CONFIG, name)).class_names[0]
        values[kind] = [class_name] if kind == "architectures" else class_name
        if name == "text_encoder_2":
            values["feed_forward_proj"] = "gated-gelu"
        (root / name / "config.json").write_text(json.dumps(values))
    make_tokenizers(root, CONFIG)
    (root / "scheduler").mkdir()
    (root / "scheduler" / "scheduler_config.json").write_text(json.dumps({"shift": 3.0, "base_shift": 0.25}))
    (root / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    return root


def make_tokenizers(root: Path, config: FluxConfig, padding: int = 0) -> None:
    """Tokenizers of meaningless words, of as many as the text encoders have rows, without so many of T5's."""
    clip, t5 = config.text_encoder, config.text_encoder_2
    for name, limit in (("tokenizer", clip.max_position_embeddings), ("tokenizer_2", 512)):
        (root / name).mkdir(parents=True)
        (root / name / "tokenizer_config.json").write_text(json.dumps({"model_max_length": limit}))
    words = {f"w{i}": i for i in range(clip.vocab_size)}
    (root / "tokenizer" / "vocab.json").write_text(json.dumps(words))
    (root / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    pieces = [
        ["<pad>", 0.0],
        ["</s>", 0.0],
        ["<unk>", 0.0],
        *([f"w{i}", -1.0] for i in range(3, t5.vocab_size - padding)),
    ]
    model = {"type": "Unigram", "unk_id": 2, "vocab": pieces}
    (root / "tokenizer_2" / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))


def rewrite(path, change):
    tensors = load_file(path)
    save_file(change(tensors) or tensors, path)


def same(a, b) -> bool:
    (xs, tree), (ys, other) = jax.tree_util.tree_flatten(a), jax.tree_util.tree_flatten(b)
    return tree == other and all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(xs, ys, strict=True))


def shard(folder):
    """Split the transformer into two shards with an index."""
    path = folder / "transformer" / FILES["transformer"]
    tensors = load_file(path)
    path.unlink()
    names = sorted(tensors)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    for file, keys in zip(SHARDS, halves, strict=True):
        save_file({key: tensors[key] for key in keys}, folder / "transformer" / file)
    index = {"weight_map": {key: file for file, keys in zip(SHARDS, halves, strict=True) for key in keys}}
    (folder / "transformer" / f"{FILES['transformer']}.index.json").write_text(json.dumps(index))
    return halves


def release(name: str, folder) -> Path:
    """A single file of random numbers under the original names."""
    plan = leaves(name, getattr(CONFIG, name), "bfl")
    path = folder.parent / f"{name}.safetensors"
    save_file({k: np.ones(s[0], np.float32) for leaf in plan for k, s in leaf.expected().items()}, path)
    return path


def fails(path, *words, load=load_component) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        load(path)
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in:\n{caught.value}"
    return caught.value


@contextmanager
def holding(file: Path, content: bytes) -> Iterator[None]:
    """Within this, a file has other bytes."""
    before = file.read_bytes()
    file.write_bytes(content)
    try:
        yield
    finally:
        file.write_bytes(before)
