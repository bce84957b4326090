"""Checkpoint names as tables: which tensors of which layout make each parameter, in which order and orientation.

A row says that a module of ours (`double_blocks.img.qkv`) is made of one module of the reference, or of several, side
by side along the output axis (fused q, k, v); `{i}` runs along a stacked layer axis. From the rows and the abstract
network follow all names and shapes of a layout, hence everything that is missing, left over or mis-shaped in a file.

Layouts: `diffusers` (and transformers, for the text encoders), `bfl` (the original single files), `jaxpa` (ours).
"""

import math
import re
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from jaxpa.config import AutoencoderConfig, CLIPConfig, T5Config, TransformerConfig
from jaxpa.encoders.autoencoder import Autoencoder
from jaxpa.encoders.clip import CLIPTextEncoder
from jaxpa.encoders.t5 import T5Encoder
from jaxpa.transformer import Flux

Layout = Literal["diffusers", "bfl", "jaxpa"]
Config = TransformerConfig | AutoencoderConfig | CLIPConfig | T5Config
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One module of ours and its sources; `ratio`: their relative widths (None: equal); `swap`: halves change place.

    `swap` concerns the diffusers layout only, whose last modulation is [scale; shift] where all others are
    [shift; scale].
    """

    diffusers: tuple[str, ...]
    bfl: tuple[str, ...] = ()
    ratio: tuple[int, ...] | None = None
    swap: bool = False


def _embedder(name: str, diffusers: str) -> dict[str, Row]:
    """The two linear layers of a time, guidance or pooled text embedder."""
    pairs = (("in_layer", "linear_1"), ("out_layer", "linear_2"))
    return {
        f"{name}.{bfl}": Row((f"time_text_embed.{diffusers}.{theirs}",), (f"{name}.{bfl}",)) for bfl, theirs in pairs
    }


def _stream(name: str, mod: str, qkv: tuple[str, ...], norm: str, out: str, mlp: str) -> dict[str, Row]:
    """One stream of the double blocks; the arguments are diffusers' names of its parts."""
    a, b = "transformer_blocks.{i}.", "double_blocks.{i}." + name
    return {
        f"double_blocks.{name}.mod": Row((a + mod,), (b + "_mod.lin",)),
        f"double_blocks.{name}.qkv": Row(tuple(f"{a}attn.{part}" for part in qkv), (b + "_attn.qkv",)),
        f"double_blocks.{name}.query_norm": Row((f"{a}attn.norm_{norm}q",), (b + "_attn.norm.query_norm",)),
        f"double_blocks.{name}.key_norm": Row((f"{a}attn.norm_{norm}k",), (b + "_attn.norm.key_norm",)),
        f"double_blocks.{name}.proj": Row((f"{a}attn.{out}",), (b + "_attn.proj",)),
        f"double_blocks.{name}.mlp_in": Row((f"{a}{mlp}.net.0.proj",), (b + "_mlp.0",)),
        f"double_blocks.{name}.mlp_out": Row((f"{a}{mlp}.net.2",), (b + "_mlp.2",)),
    }


_S, _SB = "single_transformer_blocks.{i}.", "single_blocks.{i}."
TRANSFORMER: dict[str, Row] = {
    "img_in": Row(("x_embedder",), ("img_in",)),
    "txt_in": Row(("context_embedder",), ("txt_in",)),
    **_embedder("time_in", "timestep_embedder"),
    **_embedder("guidance_in", "guidance_embedder"),
    **_embedder("vector_in", "text_embedder"),
    **_stream("img", "norm1.linear", ("to_q", "to_k", "to_v"), "", "to_out.0", "ff"),
    **_stream("txt", "norm1_context.linear", ("add_q_proj", "add_k_proj", "add_v_proj"), "added_", "to_add_out",
              "ff_context"),
    "single_blocks.mod": Row((_S + "norm.linear",), (_SB + "modulation.lin",)),
    "single_blocks.linear1": Row((_S + "attn.to_q", _S + "attn.to_k", _S + "attn.to_v", _S + "proj_mlp"),
                                 (_SB + "linear1",), ratio=(1, 1, 1, 4)),
    "single_blocks.query_norm": Row((_S + "attn.norm_q",), (_SB + "norm.query_norm",)),
    "single_blocks.key_norm": Row((_S + "attn.norm_k",), (_SB + "norm.key_norm",)),
    "single_blocks.linear2": Row((_S + "proj_out",), (_SB + "linear2",)),
    "final_mod": Row(("norm_out.linear",), ("final_layer.adaLN_modulation.1",), swap=True),
    "final_linear": Row(("proj_out",), ("final_layer.linear",)),
}  # fmt: skip

_T = "encoder.block.{i}.layer."
T5: dict[str, Row] = {
    "token_embedding": Row(("shared",)),
    "relative_bias": Row(("encoder.block.0.layer.0.SelfAttention.relative_attention_bias",)),
    "blocks.attention_norm": Row((_T + "0.layer_norm",)),
    "blocks.attention.qkv": Row(tuple(_T + f"0.SelfAttention.{part}" for part in "qkv")),
    "blocks.attention.o": Row((_T + "0.SelfAttention.o",)),
    "blocks.mlp_norm": Row((_T + "1.layer_norm",)),
    "blocks.mlp.wi": Row((_T + "1.DenseReluDense.wi_0", _T + "1.DenseReluDense.wi_1")),
    "blocks.mlp.wo": Row((_T + "1.DenseReluDense.wo",)),
    "final_norm": Row(("encoder.final_layer_norm",)),
}

_C = "encoder.layers.{i}."
CLIP: dict[str, Row] = {  # behind "text_model." in most files: see `canonical`
    "token_embedding": Row(("embeddings.token_embedding",)),
    "position_embedding": Row(("embeddings.position_embedding",)),
    "blocks.attention_norm": Row((_C + "layer_norm1",)),
    "blocks.attention.qkv": Row(tuple(_C + f"self_attn.{part}_proj" for part in "qkv")),
    "blocks.attention.out": Row((_C + "self_attn.out_proj",)),
    "blocks.mlp_norm": Row((_C + "layer_norm2",)),
    "blocks.fc1": Row((_C + "mlp.fc1",)),
    "blocks.fc2": Row((_C + "mlp.fc2",)),
    "final_norm": Row(("final_layer_norm",)),
}

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


@dataclass(frozen=True)
class Component:
    """A network that a checkpoint holds under its own folder, and how its files call it."""

    network: Any
    config: Any
    class_names: tuple[str, ...]  # in `_class_name` or `architectures`
    rows: dict[str, Row] | None = None


COMPONENTS = {
    "transformer": Component(Flux, TransformerConfig, ("FluxTransformer2DModel",), TRANSFORMER),
    "vae": Component(Autoencoder, AutoencoderConfig, ("AutoencoderKL",)),
    "text_encoder": Component(CLIPTextEncoder, CLIPConfig, ("CLIPTextModel",), CLIP),
    "text_encoder_2": Component(T5Encoder, T5Config, ("T5EncoderModel",), T5),
}


@cache  # one object per configuration: loading it again meets the programs that are already compiled
def abstract(name: str, config: Config, dtype: DTypeLike) -> Any:
    """The network without its numbers: shapes and dtypes in the module's own structure."""
    network = COMPONENTS[name].network
    return jax.eval_shape(lambda: network(config, rngs=nnx.Rngs(0), dtype=dtype))


@dataclass(frozen=True)
class Leaf:
    """One parameter of ours and the tensors that it is made of.

    sources: for each block of a stacked parameter (one, where it is not stacked) the tensors' names, side by side
    along the last axis with these widths.
    """

    path: str
    shape: Shape
    sources: tuple[tuple[str, ...], ...]
    widths: tuple[int, ...]
    stacked: bool = False
    transpose: bool = False
    swap: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def block_shape(self) -> Shape:
        return self.shape[1:] if self.stacked else self.shape

    def source_shape(self, width: int) -> Shape:
        """The shape in the file of a source of this width."""
        shape = (*self.block_shape[:-1], width)
        if not self.transpose:
            return shape
        return (shape[-1], shape[-2], *shape[:-2])

    def expected(self) -> dict[str, tuple[Shape, ...]]:
        """Every source's name and the shapes that will do: a linear layer may be stored as a 1x1 convolution."""
        out: dict[str, tuple[Shape, ...]] = {}
        for names in self.sources:
            for name, width in zip(names, self.widths, strict=True):
                shape = self.source_shape(width)
                pointwise = self.transpose and len(shape) == 2 and (".attn_1." in name or ".attentions." in name)
                out[name] = (shape, (*shape, 1, 1)) if pointwise else (shape,)
        return out

    def oriented(self, tensor: np.ndarray, width: int) -> np.ndarray:
        """A stored tensor as it stands in the parameter: a view, except where halves change place."""
        tensor = tensor.reshape(self.source_shape(width))
        if self.transpose:
            tensor = tensor.T if tensor.ndim == 2 else tensor.transpose(2, 3, 1, 0)
        return np.roll(tensor, width // 2, axis=-1) if self.swap else tensor


def leaves(name: str, config: Config, layout: Layout) -> list[Leaf]:
    """All parameters of a component, in the order in which the module flattens."""
    flat = jax.tree_util.tree_flatten_with_path(abstract(name, config, np.dtype(np.float32)))[0]
    out = []
    for path, value in flat:
        ours = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
        if layout == "jaxpa":
            out.append(Leaf(ours, value.shape, ((ours,),), value.shape[-1:]))
        else:
            out.append(_leaf(name, config, layout, ours, value.shape))
    return out


def _leaf(name: str, config: Config, layout: Layout, path: str, shape: Shape) -> Leaf:
    module, _, kind = path.rpartition(".")
    if kind not in ("kernel", "bias", "scale", "embedding"):  # a bare parameter: its path is its module's
        module, kind = path, "embedding"
    row = _row(name, config, module)
    names = row.diffusers if layout == "diffusers" else row.bfl
    suffix = (
        "." + kind if kind == "bias" or (kind == "scale" and (name, layout) == ("transformer", "bfl")) else ".weight"
    )
    ratio = row.ratio if row.ratio and len(row.ratio) == len(names) else (1,) * len(names)
    stacked = "{i}" in names[0]
    blocks = range(shape[0]) if stacked else (0,)
    return Leaf(
        path,
        shape,
        tuple(tuple(each.replace("{i}", str(i)) + suffix for each in names) for i in blocks),
        tuple(shape[-1] * part // sum(ratio) for part in ratio),
        stacked,
        transpose=kind == "kernel",
        swap=row.swap and layout == "diffusers",
    )


def _row(name: str, config: Config, module: str) -> Row:
    rows = COMPONENTS[name].rows
    if rows is not None:
        return rows[module]
    assert isinstance(config, AutoencoderConfig)
    bfl = module + "."  # so that a rule may end in the dot that ends the module's name
    for pattern, replacement in AUTOENCODER_BFL:
        bfl = re.sub(pattern, replacement, bfl)
    last = len(config.block_out_channels) - 1
    bfl = re.sub(r"\{(\d+)\}", lambda m: str(last - int(m[1])), bfl)
    return Row((module,), (bfl[:-1],))


def canonical(name: str, keys: list[str]) -> dict[str, str]:
    """Names as the tables have them -> names in the file, without what every reader skips.

    CLIP comes with and without `text_model.`; T5 may store its embedding twice; old files keep index buffers.
    """
    out = {key: key for key in keys if not key.endswith("position_ids")}
    if name == "text_encoder":
        out = {key.removeprefix("text_model."): actual for key, actual in out.items()}
    if name == "text_encoder_2" and (twin := out.pop("encoder.embed_tokens.weight", None)):
        out.setdefault("shared.weight", twin)
    return out
