"""What the keys of a LoRA's file mean: which layer of which network, and which part of its change.

    transformer . transformer_blocks.0.attn.to_q . lora_A.weight       prefix, module, role
    lora_unet_double_blocks_0_img_attn_qkv . lora_down.weight

A prefix says which network, and how its modules are written; a module is looked up under every name that the
checkpoint's tables have for it; the role is the suffix. Formats differ in these alone. XLabs' names need a table.
"""

import re
from collections.abc import Mapping
from functools import cache
from typing import Literal, NamedTuple

from jaxpa.checkpoint.keys import Config, Leaf, leaves
from jaxpa.checkpoint.keys import component as component_of
from jaxpa.config import FluxConfig

Role = Literal["down", "up", "alpha", "bias", "shift", "whole"]

SUFFIXES: tuple[tuple[str, Role], ...] = (
    (".lora_A.weight", "down"),
    (".lora_B.weight", "up"),
    (".lora_A.default.weight", "down"),
    (".lora_B.default.weight", "up"),
    (".lora_down.weight", "down"),
    (".lora_up.weight", "up"),
    (".lora.down.weight", "down"),
    (".lora.up.weight", "up"),
    (".lora_linear_layer.down.weight", "down"),
    (".lora_linear_layer.up.weight", "up"),
    (".down.weight", "down"),  # XLabs
    (".up.weight", "up"),
    (".alpha", "alpha"),
    (".lora_B.bias", "bias"),  # belongs to the product: scaled as it is
    (".diff_b", "shift"),  # a change of the layer's own bias
    (".diff", "whole"),  # a change of the layer's matrix that is no product
)

# Adapters of other kinds, by what only their keys have.
OTHERS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"\.dora_scale$|\.lora_magnitude_vector\b", "DoRA"),
        (r"\.lokr_", "LoKr"),
        (r"\.hada_", "LoHa"),
        (r"\.lora_mid\.", "LoCon with a Tucker core"),
        (r"\.(oft_blocks|oft_diag|oft_R|oft_r|boft_R)\b", "OFT"),
        (r"\.(a1|a2|b1|b2)\.weight$", "GLoRA"),
        (r"\.(ia3_l|on_input)\b", "IA3"),
        (r"\.vera_lambda_|\bvera_[AB]\b", "VeRA"),
    )
)


class Prefix(NamedTuple):
    """What stands before a module's name: the network it is of, whether its dots are underscores, whose format."""

    text: str
    component: str
    joined: bool
    format: str


PREFIXES: tuple[Prefix, ...] = (  # the first that fits counts
    Prefix("lora_unet_", "transformer", True, "kohya"),
    Prefix("lora_transformer_", "transformer", True, "kohya with diffusers' names"),
    Prefix("lycoris_", "transformer", True, "LyCORIS"),
    Prefix("lora_te1_text_model_", "text_encoder", True, "kohya"),
    Prefix("lora_te1_", "text_encoder", True, "kohya"),
    Prefix("lora_te_text_model_", "text_encoder", True, "kohya"),
    Prefix("lora_te_", "text_encoder", True, "kohya"),
    Prefix("lora_te3_", "text_encoder_2", True, "kohya"),
    Prefix("text_encoders.clip_l.transformer.text_model.", "text_encoder", False, "Comfy"),
    Prefix("text_encoders.clip_l.transformer.", "text_encoder", False, "Comfy"),
    Prefix("text_encoders.t5xxl.transformer.", "text_encoder_2", False, "Comfy"),
    Prefix("model.diffusion_model.", "transformer", False, "Comfy"),
    Prefix("diffusion_model.", "transformer", False, "Comfy"),
    Prefix("text_encoder.text_model.", "text_encoder", False, "diffusers"),
    Prefix("text_encoder.", "text_encoder", False, "diffusers"),
    Prefix("text_encoder_2.", "text_encoder_2", False, "diffusers"),
    Prefix("transformer.", "transformer", False, "diffusers"),
    Prefix("base_model.model.", "transformer", False, "PEFT"),
    Prefix("", "transformer", False, "bare"),  # the original release's, XLabs'
)
XLABS, CONTROL = "XLabs", "original release"


class Place(NamedTuple):
    """Where a key of a file belongs: `module` as its prefix leaves it."""

    prefix: Prefix
    module: str
    role: Role | None  # None: a parameter under its own name


def read_key(key: str) -> Place:
    """A key taken apart."""
    module, role = key, None
    for suffix, meaning in SUFFIXES:
        if key.endswith(suffix):
            module, role = key.removesuffix(suffix), meaning
            break
    prefix = next(each for each in PREFIXES if module.startswith(each.text))
    return Place(prefix, module.removeprefix(prefix.text), role)


def other_kind(key: str) -> str | None:
    """The kind of an adapter that is not read, if a key is one of its."""
    return next((name for pattern, name in OTHERS if pattern.search(key)), None)


_X = {"1": "img", "2": "txt"}


def of_xlabs(module: str) -> tuple[str, str] | None:
    """XLabs' name of a change -> the layer in the original release, and what the changed parameters' paths contain."""
    if match := re.fullmatch(r"(double_blocks\.\d+)\.processor\.(qkv|proj)_lora([12])", module):
        return f"{match[1]}.{_X[match[3]]}_attn.{match[2]}", ""
    if match := re.fullmatch(r"(single_blocks\.\d+)\.processor\.(qkv|proj)_lora", module):
        # Queries, keys and values are the first of the outputs of the fused layer: its MLP stays.
        return f"{match[1]}.{'linear1' if match[2] == 'qkv' else 'linear2'}", "qkv." if match[2] == "qkv" else ""
    return None


# The layers of a checkpoint ------------------------------------------------------------------------------------

Parameters = tuple[tuple[Leaf, int], ...]  # of ours that a stored tensor holds, each with the number of the block


class Names(NamedTuple):
    """The stored tensors of a network under all their names: layers by the name of the module, the rest by the key."""

    kernels: Mapping[str, Parameters]
    vectors: Mapping[str, Parameters]
    joined: Mapping[str, str]  # names of layers with underscores -> with dots


def names_of(config: FluxConfig, component: str) -> Names:
    """Of a component of a checkpoint with this configuration."""
    return _names(component, getattr(config, component))


@cache
def _names(component: str, config: Config) -> Names:
    rows = component_of(component, config).rows or {}
    both = component == "transformer" and all(row.bfl for row in rows.values())
    kernels: dict[str, Parameters] = {}
    vectors: dict[str, Parameters] = {}
    for layout in ("bfl", "diffusers") if both else ("diffusers",):
        stored: dict[str, list[tuple[Leaf, int]]] = {}
        for leaf in leaves(component, config, layout):
            for block, key in enumerate(leaf.sources):
                stored.setdefault(key, []).append((leaf, block))
        for key, held in stored.items():
            if held[0][0].path.endswith(".kernel"):
                kernels[key.removesuffix(".weight")] = tuple(held)
            else:
                vectors[key] = tuple(held)
    return Names(kernels, vectors, {name.replace(".", "_"): name for name in kernels})
