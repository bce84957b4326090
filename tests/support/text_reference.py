"""Weights of transformers' text encoders in the layout of jaxpa's: what the tests of t5, clip and text share.

Written apart from the checkpoint loader, so that the networks are tested without it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from jaxpa.config import CLIPConfig, T5Config
from jaxpa.encoders.clip import CLIPTextEncoder
from jaxpa.encoders.t5 import T5Encoder

Weights = Mapping[str, np.ndarray]
Module = TypeVar("Module", bound=nnx.Module)


def load_folder(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of the safetensors files in a folder."""
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def state_dict(torch_model: Any) -> dict[str, np.ndarray]:
    return {name: value.detach().float().numpy() for name, value in torch_model.state_dict().items()}


def _fill(module: Module, values: Mapping[str, np.ndarray]) -> Module:
    """Give every parameter its value; the names must be exactly the module's."""
    graph, state = nnx.split(module)
    flat = dict(nnx.to_flat_state(state))
    assert {".".join(map(str, path)) for path in flat} == set(values)
    for path, param in flat.items():
        value = values[".".join(map(str, path))]
        assert param.shape == value.shape, path
        flat[path] = param.replace(jnp.asarray(value, param.dtype))
    return nnx.merge(graph, nnx.from_flat_state(flat))


def _layers(count: int, make: Callable[[int], np.ndarray]) -> np.ndarray:
    return np.stack([make(i) for i in range(count)])


def fill_t5(config: T5Config, weights: Weights) -> T5Encoder:
    def stacked(layer: str, name: str) -> np.ndarray:
        return _layers(config.num_layers, lambda i: weights[f"encoder.block.{i}.layer.{layer}.{name}.weight"].T)

    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    values = {
        "token_embedding": weights["shared.weight"],
        "relative_bias": weights[bias],
        "blocks.attention_norm.scale": stacked("0", "layer_norm"),
        **{f"blocks.attention.{part}.kernel": stacked("0.SelfAttention", part) for part in "qkvo"},
        "blocks.mlp_norm.scale": stacked("1", "layer_norm"),
        **{f"blocks.mlp.{part}.kernel": stacked("1.DenseReluDense", part) for part in ("wi_0", "wi_1", "wo")},
        "final_norm.scale": weights["encoder.final_layer_norm.weight"],
    }
    return _fill(T5Encoder(config, rngs=nnx.Rngs(0)), values)


def fill_clip(config: CLIPConfig, weights: Weights) -> CLIPTextEncoder:
    weights = {name.removeprefix("text_model."): value for name, value in weights.items()}

    def stacked(kind: str, name: str) -> np.ndarray:
        return _layers(config.num_hidden_layers, lambda i: weights[f"encoder.layers.{i}.{name}.{kind}"].T)

    values = {
        "token_embedding": weights["embeddings.token_embedding.weight"],
        "position_embedding": weights["embeddings.position_embedding.weight"],
    }
    for ours, kind in (("kernel", "weight"), ("bias", "bias")):
        values |= {f"blocks.attention.{part}.{ours}": stacked(kind, f"self_attn.{part}_proj") for part in "qkv"}
        values[f"blocks.attention.out.{ours}"] = stacked(kind, "self_attn.out_proj")
        values[f"blocks.fc1.{ours}"] = stacked(kind, "mlp.fc1")
        values[f"blocks.fc2.{ours}"] = stacked(kind, "mlp.fc2")
    for ours, kind in (("scale", "weight"), ("bias", "bias")):
        values[f"blocks.attention_norm.{ours}"] = stacked(kind, "layer_norm1")
        values[f"blocks.mlp_norm.{ours}"] = stacked(kind, "layer_norm2")
        values[f"final_norm.{ours}"] = weights[f"final_layer_norm.{kind}"]
    return _fill(CLIPTextEncoder(config, rngs=nnx.Rngs(0)), values)
