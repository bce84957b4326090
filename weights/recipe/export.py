"""Stage 4: the trained networks as a folder that diffusers reads, in bfloat16.

The folder has FLUX.1's layout: five components, a scheduler and `model_index.json`. Beside them, `jaxpa.json` holds the
settings that this checkpoint uses unless told otherwise.
"""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from jaxpa.checkpoint.keys import COMPONENTS, Config, leaves
from jaxpa.config import FluxConfig
from jaxpa.encoders.t5 import T5Encoder

WEIGHTS = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
}
INDEX = {
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "T5EncoderModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "tokenizer_2": ("transformers", "T5TokenizerFast"),
    "transformer": ("diffusers", "FluxTransformer2DModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}


def tensors(name: str, config: Config, module: Any) -> dict[str, np.ndarray]:
    """The parameters of a network under diffusers' (transformers') names: what `keys.leaves` describes, backwards."""
    out: dict[str, np.ndarray] = {}
    for leaf, value in zip(leaves(name, config, "diffusers"), jax.tree.leaves(module), strict=True):
        blocks = np.asarray(value) if leaf.stacked else np.asarray(value)[None]
        for key, block in zip(leaf.sources, blocks, strict=True):
            leaf.put(block, out.setdefault(key, np.empty(leaf.stored_shape, block.dtype)))
    return out


def with_rows(encoder: T5Encoder, rows: list[int], sources: list[int]) -> T5Encoder:
    """The encoder in which the token ids `rows` have the embeddings of the ids `sources`."""
    table = encoder.token_embedding[...]
    table = table.at[np.array(rows, int)].set(table[np.array(sources, int)])

    def pick(path: Any, leaf: jax.Array) -> jax.Array:
        return table if "token_embedding" in jax.tree_util.keystr(path, simple=True, separator=".") else leaf

    return jax.tree_util.tree_map_with_path(pick, encoder)


def component_json(name: str, config: Any) -> dict[str, Any]:
    """A component's config.json: our fields under the reference's names, and whatever else the reference needs."""
    fields, levels = asdict(config), len(getattr(config, "block_out_channels", ()))
    extra: dict[str, dict[str, Any]] = {
        "transformer": {"_class_name": "FluxTransformer2DModel", "patch_size": 1},
        "vae": {
            "_class_name": "AutoencoderKL",
            "act_fn": "silu",
            "force_upcast": True,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
        },
        "text_encoder": {
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            # FLUX.1's values; nothing reads them, but transformers' own defaults lie outside a small vocabulary.
            "bos_token_id": 0,
            "pad_token_id": 1,
        },
        "text_encoder_2": {
            "architectures": ["T5EncoderModel"],
            "model_type": "t5",
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
            "is_encoder_decoder": True,
            "pad_token_id": 0,
            "eos_token_id": 1,
        },
    }
    return {**extra[name], **fields}


def export(
    folder: Path, config: FluxConfig, networks: dict[str, Any], tokenizers: Path, settings: dict[str, Any]
) -> None:
    """Write a diffusers folder, whole or not at all, in place of an existing one.

    networks: a module for each of `WEIGHTS`; tokenizers: the folder that holds `tokenizer` and `tokenizer_2`;
    settings: preset, size, steps, guidance, max_length of `jaxpa.json`.
    """
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        for name in COMPONENTS:
            (partial / name).mkdir(parents=True)
            values = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), networks[name])
            component = getattr(config, name)
            (partial / name / WEIGHTS[name]).write_bytes(save(tensors(name, component, values), {"format": "pt"}))
            _write(partial / name / "config.json", component_json(name, component))
        for name in ("tokenizer", "tokenizer_2"):
            shutil.copytree(tokenizers / name, partial / name)
        (partial / "scheduler").mkdir()
        schedule = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
        _write(partial / "scheduler" / "scheduler_config.json", schedule | asdict(config.scheduler))
        _write(partial / "model_index.json", {"_class_name": "FluxPipeline", **INDEX})
        _write(partial / "jaxpa.json", settings)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
