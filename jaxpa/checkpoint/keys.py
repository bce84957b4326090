"""Checkpoint names as tables: which stored tensor, or which part of one, is each parameter, and how it is oriented.

A row says where a module of ours (`double_blocks.img.qkv.q`) is stored in each layout; `{i}` runs along a stacked layer
axis, and `name[0:3]` is the first of three equal parts of a tensor's outputs (fused q, k, v). From the rows and the
abstract network follow all names and shapes of a layout, hence everything that is missing, left over or mis-shaped.

Layouts: `diffusers` (and transformers, for the text encoders), `bfl` (the original single files), `jaxpa` (ours, which
fuses what the original release fuses).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from jaxpa.backbones.backbone import BackboneConfig
from jaxpa.backbones.registry import BACKBONES
from jaxpa.backbones.shapes import Shape
from jaxpa.backbones.tables import Component, Row, Stored, row
from jaxpa.config import (
    AutoencoderConfig,
    CLIPConfig,
    CLIPVisionConfig,
    ReduxConfig,
    SiglipVisionConfig,
    T5Config,
)
from jaxpa.encoders.autoencoder import Autoencoder
from jaxpa.encoders.clip import CLIPTextEncoder
from jaxpa.encoders.t5 import T5Encoder
from jaxpa.encoders.vision import ReduxEmbedder, VisionEncoder

Layout = Literal["diffusers", "bfl", "jaxpa"]
Config = BackboneConfig | AutoencoderConfig | CLIPConfig | T5Config | SiglipVisionConfig | ReduxConfig


def _fused(names: tuple[str, ...], diffusers: tuple[str, ...], own: str) -> dict[str, Row]:
    """Modules that are stored apart in diffusers' layout, side by side in ours."""
    pairs = enumerate(zip(names, diffusers, strict=True))
    return {name: Row(Stored(theirs), None, Stored(own, i, i + 1, len(names))) for i, (name, theirs) in pairs}


_T = "encoder.block.{i}.layer."
T5: dict[str, Row] = {
    "token_embedding": row("shared"),
    "relative_bias": row("encoder.block.0.layer.0.SelfAttention.relative_attention_bias"),
    "blocks.attention_norm": row(_T + "0.layer_norm"),
    **_fused(
        tuple(f"blocks.attention.{part}" for part in "qkv"),
        tuple(f"{_T}0.SelfAttention.{part}" for part in "qkv"),
        "blocks.attention.qkv",
    ),
    "blocks.attention.o": row(_T + "0.SelfAttention.o"),
    "blocks.mlp_norm": row(_T + "1.layer_norm"),
    **_fused(
        ("blocks.mlp.wi_0", "blocks.mlp.wi_1"),
        (_T + "1.DenseReluDense.wi_0", _T + "1.DenseReluDense.wi_1"),
        "blocks.mlp.wi",
    ),
    "blocks.mlp.wo": row(_T + "1.DenseReluDense.wo"),
    "final_norm": row("encoder.final_layer_norm"),
}

_C = "encoder.layers.{i}."
_CLIP_BLOCKS: dict[str, Row] = {
    "blocks.attention_norm": row(_C + "layer_norm1"),
    **_fused(
        tuple(f"blocks.attention.{part}" for part in "qkv"),
        tuple(f"{_C}self_attn.{part}_proj" for part in "qkv"),
        "blocks.attention.qkv",
    ),
    "blocks.attention.out": row(_C + "self_attn.out_proj"),
    "blocks.mlp_norm": row(_C + "layer_norm2"),
    "blocks.fc1": row(_C + "mlp.fc1"),
    "blocks.fc2": row(_C + "mlp.fc2"),
}
CLIP: dict[str, Row] = {  # behind "text_model." in most files: see `canonical`
    "token_embedding": row("embeddings.token_embedding"),
    "position_embedding": row("embeddings.position_embedding"),
    **_CLIP_BLOCKS,
    "final_norm": row("final_layer_norm"),
}
VISION: dict[str, Row] = {  # SigLIP's, and what CLIP's has besides; behind "vision_model." in older files
    "patch_embedding": row("embeddings.patch_embedding"),
    "position_embedding": row("embeddings.position_embedding"),
    "class_embedding": row("embeddings.class_embedding"),
    "pre_norm": row("pre_layrnorm"),
    **_CLIP_BLOCKS,
    "final_norm": row("post_layernorm"),
    "projection": row("visual_projection"),
}
REDUX = {"up": row("redux_up"), "down": row("redux_down")}

# The autoencoder's module paths are diffusers' own; its original names follow by these substitutions, in order.
# A number in braces counts from the last block: the decoder's block 0 is its lowest resolution here, its highest there.
AUTOENCODER_BFL = (
    (r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block."),
    (r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample."),
    (r"up_blocks\.(\d+)\.resnets\.", r"up.{\1}.block."),
    (r"up_blocks\.(\d+)\.upsamplers\.0\.", r"up.{\1}.upsample."),
    (r"mid_block\.resnets\.0\.", "mid.block_1."),
    (r"mid_block\.resnets\.1\.", "mid.block_2."),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
)


# A folder of a checkpoint -> the networks that may lie in it, by name.
COMPONENTS: dict[str, Mapping[str, Component]] = {
    "transformer": BACKBONES,
    "vae": {"autoencoder": Component(Autoencoder, AutoencoderConfig, ("AutoencoderKL",))},
    "text_encoder": {"clip": Component(CLIPTextEncoder, CLIPConfig, ("CLIPTextModel",), CLIP)},
    "text_encoder_2": {
        "t5": Component(T5Encoder, T5Config, ("T5EncoderModel",), T5, re.compile(r"blocks\..+\.kernel"))
    },
}
# What stands in a folder of its own, for the pipelines that ask for it.
FURTHER: dict[str, Mapping[str, Component]] = {
    "image_encoder": {
        "siglip": Component(VisionEncoder, SiglipVisionConfig, ("SiglipVisionModel",), VISION),
        "clip": Component(VisionEncoder, CLIPVisionConfig, ("CLIPVisionModelWithProjection",), VISION),
    },
    "image_embedder": {"redux": Component(ReduxEmbedder, ReduxConfig, ("ReduxImageEncoder",), REDUX)},
}
KNOWN: dict[str, Mapping[str, Component]] = {**COMPONENTS, **FURTHER}


def component(name: str, config: Config) -> Component:
    """The network of a folder that has this configuration."""
    return next(kind for kind in KNOWN[name].values() if type(config) is kind.config)


@cache  # one object per configuration: loading it again meets the programs that are already compiled
def abstract(name: str, config: Config, dtype: DTypeLike) -> Any:
    """The network without its numbers: shapes and dtypes in the module's own structure."""
    network = component(name, config).network
    return jax.eval_shape(lambda: network(config, rngs=nnx.Rngs(0), dtype=dtype))


@dataclass(frozen=True)
class Leaf:
    """One parameter of ours and where it is stored.

    sources: the names of its tensors, one for each block of a parameter that is stacked here and not in the file, else
    one. Each is a part of the tensor along its last axis of ours, or along the one before.
    """

    path: str
    shape: Shape
    sources: tuple[str, ...]
    part: Stored
    stacked: bool = False
    transpose: bool = False
    swap: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def block_shape(self) -> Shape:
        return self.shape[1:] if self.stacked else self.shape

    @property
    def _axis(self) -> int | None:
        """Along which the stored tensor is taken apart; None: it is not."""
        if not self.part.inputs:
            return -1
        return -2 if self.path.endswith(".kernel") else None

    @property
    def _inside(self) -> slice:
        """Which stretch of the stored tensor along that axis is this parameter's."""
        assert self._axis is not None
        size = self.block_shape[self._axis] // (self.part.stop - self.part.start)
        return slice(self.part.start * size, self.part.stop * size)

    @property
    def begins(self) -> bool:
        """Whether this is the first of the parameters that a tensor is taken apart into, or all of it."""
        return self._axis is None or self.part.start == 0

    @property
    def whole_shape(self) -> Shape:
        """The shape of the whole stored tensor, in our orientation."""
        shape = list(self.block_shape)
        if self._axis is not None:
            shape[self._axis] = shape[self._axis] * self.part.of // (self.part.stop - self.part.start)
        return tuple(shape)

    @property
    def stored_shape(self) -> Shape:
        """The shape of a source in the file."""
        shape = self.whole_shape
        return (shape[-1], shape[-2], *shape[:-2]) if self.transpose else shape

    def expected(self) -> dict[str, tuple[Shape, ...]]:
        """Every source's name and the shapes that will do: a linear layer may be stored as a 1x1 convolution."""
        shape = self.stored_shape
        linear = self.transpose and len(shape) == 2
        return {
            name: (shape, (*shape, 1, 1)) if linear and (".attn_1." in name or ".attentions." in name) else (shape,)
            for name in self.sources
        }

    def view(self, tensor: np.ndarray) -> np.ndarray:
        """The part of a stored tensor that is this parameter's, in our orientation; halves have not changed place."""
        if self.transpose:
            tensor = tensor.reshape(self.stored_shape)
            tensor = tensor.T if tensor.ndim == 2 else tensor.transpose(2, 3, 1, 0)
        if self._axis is None or self.part.of == 1:
            return tensor
        return tensor[..., self._inside] if self._axis == -1 else tensor[..., self._inside, :]

    def take(self, tensor: np.ndarray) -> np.ndarray:
        """A stored tensor -> the parameter (its block): a view, except where halves change place."""
        part = self.view(tensor)
        return np.roll(part, part.shape[-1] // 2, axis=-1) if self.swap else part

    @property
    def rows(self) -> slice | None:
        """Which rows of a stored matrix (Out, In) are this parameter's; None: all are needed."""
        return self._inside if self.transpose and not self.part.inputs and self.part.of > 1 else None

    def take_rows(self, tensor: np.ndarray) -> np.ndarray:
        """`take`, of a tensor of which `rows` alone were read."""
        return (self if self.rows is None else replace(self, part=Stored(self.part.name))).take(tensor)

    def outputs(self, vector: np.ndarray) -> np.ndarray:
        """What belongs to this kernel's outputs, of a number (1,) or of one for each row of the stored matrix."""
        if len(vector) == 1:
            return np.repeat(vector, self.block_shape[-1])
        part = vector if self.rows is None else vector[self.rows]
        return np.roll(part, len(part) // 2) if self.swap else part

    def factors(self, down: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Factors of a change of the stored tensor, up (Out, R) down (R, In) -> this parameter's, (In, R) and (R, Out).

        A tensor of several parts may be changed in its first parts only: `up` then has so many of the outputs.
        """
        a, b = down.T, up.T
        if self.part.of > 1:
            a, b = (a[self._inside], b) if self.part.inputs else (a, b[:, self._inside])
        return a, np.roll(b, b.shape[-1] // 2, axis=-1) if self.swap else b

    def put(self, block: np.ndarray, tensor: np.ndarray) -> None:
        """The parameter (its block) into a stored tensor: `take`, backwards."""
        self.view(tensor)[...] = np.roll(block, block.shape[-1] // 2, axis=-1) if self.swap else block


def leaves(name: str, config: Config, layout: Layout) -> list[Leaf]:
    """All parameters of a component, in the order in which the module flattens."""
    flat = jax.tree_util.tree_flatten_with_path(abstract(name, config, np.dtype(np.float32)))[0]
    return [_leaf(name, config, layout, path_of(path), value.shape) for path, value in flat]


def path_of(path: Any) -> str:
    """A parameter's path in dots."""
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def _leaf(name: str, config: Config, layout: Layout, path: str, shape: Shape) -> Leaf:
    module, _, kind = path.rpartition(".")
    if kind not in ("kernel", "bias", "scale", "embedding"):  # a bare parameter: its path is its module's
        module, kind = path, ""
    row = _findrow(name, config, module)
    if layout == "jaxpa":  # stacked in the file as it is here
        stored = row.jaxpa or Stored(module)
        return Leaf(path, shape, (f"{stored.name}.{kind}" if kind else stored.name,), stored)
    stored = row.diffusers if layout == "diffusers" else row.bfl
    assert stored is not None
    suffix = {"bias": ".bias", "scale": f".{stored.scale}"}.get(kind, ".weight")
    stacked = "{i}" in stored.name
    return Leaf(
        path,
        shape,
        tuple(stored.name.replace("{i}", str(i)) + suffix for i in (range(shape[0]) if stacked else (0,))),
        stored,
        stacked,
        transpose=kind == "kernel",
        swap=row.swap and layout == "diffusers",
    )


def _findrow(name: str, config: Config, module: str) -> Row:
    rows = component(name, config).rows
    if rows is not None:
        return rows[module]
    assert isinstance(config, AutoencoderConfig)
    bfl = module + "."  # so that a rule may end in the dot that ends the module's name
    for pattern, replacement in AUTOENCODER_BFL:
        bfl = re.sub(pattern, replacement, bfl)
    last = len(config.block_out_channels) - 1
    bfl = re.sub(r"\{(\d+)\}", lambda m: str(last - int(m[1])), bfl)
    return row(module, bfl[:-1])


def canonical(name: str, keys: list[str]) -> dict[str, str]:
    """Names as the tables have them -> names in the file, without what every reader skips.

    CLIP comes with and without `text_model.`, vision transformers with and without `vision_model.`; SigLIP's pooling
    head is not read; T5 may store its embedding twice; old files keep index buffers.
    """
    out = {key: key for key in keys if not key.endswith("position_ids")}
    if name == "text_encoder":
        out = {key.removeprefix("text_model."): actual for key, actual in out.items()}
    if name == "image_encoder":
        out = {key.removeprefix("vision_model."): actual for key, actual in out.items()}
        out = {key: actual for key, actual in out.items() if not key.startswith("head.")}
        if (whole := out.pop("embeddings.class_embedding", None)) is not None:
            out["embeddings.class_embedding.weight"] = whole
    if name == "text_encoder_2" and (twin := out.pop("encoder.embed_tokens.weight", None)):
        out.setdefault("shared.weight", twin)
    return out
