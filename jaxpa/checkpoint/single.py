"""Single files: which components they hold, by the names of their tensors, and what the shapes tell of these.

The original release has a file for the transformer and one for the autoencoder; others have text encoders too, or all
of them in one, each behind a prefix. No configuration comes with them: the shapes tell it, as far as they can.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from jaxpa.backbones.registry import BACKBONES
from jaxpa.backbones.shapes import Shape, axes, count_blocks
from jaxpa.checkpoint.files import Files
from jaxpa.checkpoint.gguf import SUFFIX, read_gguf
from jaxpa.checkpoint.keys import Config, Layout, canonical, leaves
from jaxpa.checkpoint.parts import Part
from jaxpa.checkpoint.scales import packing_fault, take_scales
from jaxpa.config import AutoencoderConfig, CLIPConfig, T5Config

Infer = Callable[[dict[str, Shape], dict[str, Any] | None], Config]


class Kind(NamedTuple):
    """A component that single files hold: names that only it has, group 1 being what may stand in front of them."""

    name: str
    pattern: re.Pattern[str]
    layout: Layout
    infer: Infer


class Found(NamedTuple):
    """A component of a file, and the prefix of its names there."""

    kind: Kind
    prefix: str


def open_single(file: Path, hints: dict[str, dict[str, Any]]) -> list[Part]:
    """The components in a single file; [] where its names are not known.

    hints: config.json contents of other components, for what shapes do not tell.
    """
    files = Files()
    files.add(file, read=read_gguf if file.name.endswith(SUFFIX) else None)
    if files.unknown is None:
        return [Part("unknown", file, "bfl", files)]
    if packing := packing_fault(files.tensors):
        return [Part("unknown", file, "bfl", files, problems=(packing,))]
    if files.metadata.get("format") == "gguf":
        files.tensors = {_of_llama(key): tensor for key, tensor in files.tensors.items()}
    found = _recognised(files.tensors)
    parts = []
    for kind, prefix in found.values():
        others = [other.prefix for name, other in found.items() if name != kind.name]
        longer = tuple(other for other in others if len(other) > len(prefix))  # the other's, though it fits here
        mine = {
            key.removeprefix(prefix): tensor
            for key, tensor in files.tensors.items()
            if key.startswith(prefix) and not key.startswith(longer)
        }
        if not parts:  # what has nobody's prefix is left over here, so that it is reported
            mine |= {key: t for key, t in files.tensors.items() if not key.startswith((prefix, *others))}
        mine, scales = take_scales(mine, files.metadata, prefix)
        mine = {key: mine[actual] for key, actual in canonical(kind.name, list(mine)).items()}
        part = Part(kind.name, file, kind.layout, files if not parts else Files(), prefix=prefix, tensors=mine)
        parts.append(_inferred(replace(part, scales=scales), kind.infer, hints.get(kind.name)))
    return parts


def _recognised(names: Iterable[str]) -> dict[str, Found]:
    """The components that have known names among these.

    A backbone is the one whose names are the most; of two alike, the first.
    """
    found: dict[str, tuple[int, Found]] = {}
    backbones = (Kind("transformer", backbone.signature, "bfl", backbone.infer) for backbone in BACKBONES.values())
    for kind in (*backbones, *OTHERS):
        prefixes = Counter(match[1] for key in names if (match := kind.pattern.match(key)))
        for prefix, count in prefixes.most_common(1):
            if kind.name not in found or count > found[kind.name][0]:
                found[kind.name] = count, Found(kind, prefix)
    return {name: each for name, (_, each) in found.items()}


def _inferred(part: Part, infer: Infer, hint: dict[str, Any] | None) -> Part:
    """The part with the configuration that its shapes tell."""
    try:
        config = infer({key: tensor.shape for key, tensor in part.tensors.items()}, hint)
        leaves(part.name, config, part.layout)
    except (ValueError, TypeError, ArithmeticError) as error:
        return replace(part, problems=(f"{part.path}: {error}",))
    return replace(part, config=config)


def infer_autoencoder(shapes: dict[str, Shape], hint: dict[str, Any] | None) -> AutoencoderConfig:
    """The autoencoder's configuration from shapes; scale, shift and groups are FLUX's or those of `hint`.

    Raises ValueError where they do not tell it, or with the name of a tensor that is needed and missing.
    """
    count = count_blocks(shapes, r"encoder\.down\.(\d+)\.")
    widths = [axes(shapes, f"encoder.down.{i}.block.0.conv1.weight", 4)[0] for i in range(count)]
    known = {key: hint[key] for key in ("norm_num_groups", "scaling_factor", "shift_factor") if hint and key in hint}
    groups = known.get("norm_num_groups")
    if groups is None and any(width % AutoencoderConfig.norm_num_groups for width in widths):
        raise ValueError(
            f"blocks of {widths} channels have no {AutoencoderConfig.norm_num_groups} groups to norm, and the file "
            "does not say how many: pass --components FOLDER with a vae/config.json"
        )
    return AutoencoderConfig.from_json(
        {
            "in_channels": axes(shapes, "encoder.conv_in.weight", 4)[1],
            "out_channels": axes(shapes, "decoder.conv_out.weight", 4)[0],
            "latent_channels": axes(shapes, "decoder.conv_in.weight", 4)[1],
            "block_out_channels": widths,
            "layers_per_block": count_blocks(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
            "mid_block_add_attention": any(".mid.attn_1." in key for key in shapes),
            **known,
        }
    )


def _infer_clip(shapes: dict[str, Shape], hint: dict[str, Any] | None) -> CLIPConfig:
    """CLIP's text encoder from shapes; heads, activation and the last token are ViT-L/14's, or a twin's of `hint`.

    Raises ValueError as `infer_autoencoder` does.
    """
    told = ("num_attention_heads", "hidden_act", "layer_norm_eps", "eos_token_id")
    rows, width = axes(shapes, "embeddings.token_embedding.weight", 2)[:2]
    known = {key: hint[key] for key in told if hint and key in hint and hint.get("hidden_size") == width}
    head = CLIPConfig.hidden_size // CLIPConfig.num_attention_heads
    if "num_attention_heads" not in known and width % head:
        raise ValueError(
            f"CLIP's width is {width}, no multiple of {head}, and the file does not say how many heads share it: "
            "pass --components FOLDER with a text_encoder/config.json"
        )
    return CLIPConfig.from_json(
        {
            "vocab_size": rows,
            "hidden_size": width,
            "intermediate_size": axes(shapes, "encoder.layers.0.mlp.fc1.weight", 2)[0],
            "num_hidden_layers": count_blocks(shapes, r"encoder\.layers\.(\d+)\."),
            "num_attention_heads": width // head,
            "max_position_embeddings": axes(shapes, "embeddings.position_embedding.weight", 2)[0],
            **known,
        }
    )


def _infer_t5(shapes: dict[str, Shape], hint: dict[str, Any] | None) -> T5Config:
    """T5's encoder from shapes; how far its positions reach is T5's or that of `hint`.

    Raises ValueError as `infer_autoencoder` does.
    """
    told = ("relative_attention_max_distance", "layer_norm_epsilon", "feed_forward_proj")
    known = {key: hint[key] for key in told if hint and key in hint}
    rows, width = axes(shapes, "shared.weight", 2)[:2]
    attention = "encoder.block.0.layer.0.SelfAttention"
    buckets, heads = axes(shapes, f"{attention}.relative_attention_bias.weight", 2)[:2]
    return T5Config.from_json(
        {
            "vocab_size": rows,
            "d_model": width,
            "d_kv": axes(shapes, f"{attention}.q.weight", 2)[0] // heads,
            "d_ff": axes(shapes, "encoder.block.0.layer.1.DenseReluDense.wi_0.weight", 2)[0],
            "num_layers": count_blocks(shapes, r"encoder\.block\.(\d+)\."),
            "num_heads": heads,
            "relative_attention_num_buckets": buckets,
            **known,
        }
    )


OTHERS = (
    Kind("vae", re.compile(r"^(.*?)(?:encoder\.down|decoder\.up)\.\d+\."), "bfl", infer_autoencoder),
    Kind("text_encoder", re.compile(r"^(.*?)text_model\.encoder\.layers\.\d+\."), "diffusers", _infer_clip),
    Kind("text_encoder_2", re.compile(r"^(.*?)encoder\.block\.\d+\.layer\."), "diffusers", _infer_t5),
)

# llama.cpp's names of T5, which GGUF files have: `enc.blk.0.attn_q.weight`.
LLAMA = {
    "attn_q": "0.SelfAttention.q",
    "attn_k": "0.SelfAttention.k",
    "attn_v": "0.SelfAttention.v",
    "attn_o": "0.SelfAttention.o",
    "attn_norm": "0.layer_norm",
    "attn_rel_b": "0.SelfAttention.relative_attention_bias",
    "ffn_gate": "1.DenseReluDense.wi_0",
    "ffn_up": "1.DenseReluDense.wi_1",
    "ffn_down": "1.DenseReluDense.wo",
    "ffn_norm": "1.layer_norm",
}
LLAMA_ENDS = {"token_embd.weight": "shared.weight", "enc.output_norm.weight": "encoder.final_layer_norm.weight"}


def _of_llama(key: str) -> str:
    """T5's name of a tensor under llama.cpp's; others as they are."""
    match = re.fullmatch(r"enc\.blk\.(\d+)\.(\w+)\.weight", key)
    if match and match[2] in LLAMA:
        return f"encoder.block.{match[1]}.layer.{LLAMA[match[2]]}.weight"
    return LLAMA_ENDS.get(key, key)
