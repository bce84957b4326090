"""FLUX.1 as a backbone: its names in files, its configuration from shapes, its work, and how it is spread."""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from jaxpa.backbones.backbone import Backbone
from jaxpa.backbones.shapes import Shape, axes, count_blocks
from jaxpa.backbones.tables import Layer, Row, Stored, Work, row
from jaxpa.config import TIME_WIDTH, AutoencoderConfig, CLIPConfig, T5Config, TransformerConfig

if TYPE_CHECKING:
    import jax

    from jaxpa.encoders.text import TextEmbedding
    from jaxpa.transformer import Flux, FluxConditions


# Where its modules are stored ----------------------------------------------------------------------------------


def _part(diffusers: Stored, fused: Iterable[Stored]) -> Row:
    """A module that is a part of a fused tensor in the original layout and in ours."""
    bfl, own = fused
    return Row(diffusers, bfl, own)


def _norms(module: str, diffusers: str, bfl: str) -> dict[str, Row]:
    """The norms of queries and keys."""
    return {
        f"{module}qkv.{part}_norm": Row(
            Stored(diffusers + part[0]), Stored(f"{bfl}{part}_norm", scale="scale"), Stored(f"{module}{part}_norm")
        )
        for part in ("query", "key")
    }


def _embedder(name: str, diffusers: str) -> dict[str, Row]:
    """The two linear layers of a time, guidance or pooled text embedder."""
    pairs = (("in_layer", "linear_1"), ("out_layer", "linear_2"))
    return {f"{name}.{bfl}": row(f"time_text_embed.{diffusers}.{theirs}", f"{name}.{bfl}") for bfl, theirs in pairs}


def _stream(name: str, mod: str, qkv: tuple[str, ...], norm: str, out: str, mlp: str) -> dict[str, Row]:
    """One stream of the double blocks; the arguments are diffusers' names of its parts."""
    a, b, own = "transformer_blocks.{i}.", "double_blocks.{i}." + name, f"double_blocks.{name}."
    rows = {
        own + "mod": row(a + mod, b + "_mod.lin"),
        own + "proj": row(f"{a}attn.{out}", b + "_attn.proj"),
        own + "mlp_in": row(f"{a}{mlp}.net.0.proj", b + "_mlp.0"),
        own + "mlp_out": row(f"{a}{mlp}.net.2", b + "_mlp.2"),
    }
    for i, (part, theirs) in enumerate(zip("qkv", qkv, strict=True)):
        fused = (Stored(each, i, i + 1, 3) for each in (b + "_attn.qkv", own + "qkv"))
        rows[f"{own}qkv.{part}"] = _part(Stored(f"{a}attn.{theirs}"), fused)
    return rows | _norms(own, f"{a}attn.norm_{norm}", f"{b}_attn.norm.")


def _single() -> dict[str, Row]:
    """The single blocks: q, k, v and the MLP's first layer are fused, and so are attention's and the MLP's outputs."""
    a, b, own = "single_transformer_blocks.{i}.", "single_blocks.{i}.", "single_blocks."
    rows = {own + "mod": row(a + "norm.linear", b + "modulation.lin")}
    for i, (part, theirs, stop) in enumerate(
        (("qkv.q", "attn.to_q", 1), ("qkv.k", "attn.to_k", 2), ("qkv.v", "attn.to_v", 3), ("mlp_in", "proj_mlp", 7))
    ):
        fused = (Stored(each + "linear1", i, stop, 7) for each in (b, own))
        rows[own + part] = _part(Stored(a + theirs), fused)
    for part, start, stop in (("proj", 0, 1), ("mlp_out", 1, 5)):
        diffusers, *fused = (
            Stored(each, start, stop, 5, inputs=True) for each in (a + "proj_out", b + "linear2", own + "linear2")
        )
        rows[own + part] = _part(diffusers, fused)
    return rows | _norms(own, f"{a}attn.norm_", f"{b}norm.")


ROWS: dict[str, Row] = {
    "img_in": row("x_embedder", "img_in"),
    "txt_in": row("context_embedder", "txt_in"),
    **_embedder("time_in", "timestep_embedder"),
    **_embedder("guidance_in", "guidance_embedder"),
    **_embedder("vector_in", "text_embedder"),
    **_stream("img", "norm1.linear", ("to_q", "to_k", "to_v"), "", "to_out.0", "ff"),
    **_stream(
        "txt", "norm1_context.linear", ("add_q_proj", "add_k_proj", "add_v_proj"), "added_", "to_add_out", "ff_context"
    ),
    **_single(),
    "final_mod": row("norm_out.linear", "final_layer.adaLN_modulation.1", swap=True),
    "final_linear": row("proj_out", "final_layer.linear"),
}


# What it is and does -------------------------------------------------------------------------------------------


def infer(shapes: dict[str, Shape], hint: dict[str, Any] | None) -> TransformerConfig:
    """The MM-DiT's configuration from the shapes of its tensors under the original names.

    The rotary axes leave no trace in them: FLUX's for FLUX's head width, else those of `hint`, a config.json. Raises
    ValueError where there is none, or with the name of a tensor that is needed and missing.
    """
    width, channels = axes(shapes, "img_in.weight", 2)[:2]
    (head,) = axes(shapes, "double_blocks.0.img_attn.norm.query_norm.scale", 1)[:1]
    out = axes(shapes, "final_layer.linear.weight", 2)[0]
    rotary = list(TransformerConfig.axes_dims_rope)
    if hint is not None and hint.get("axes_dims_rope"):
        rotary = hint["axes_dims_rope"]
    elif head != sum(rotary):
        raise ValueError(
            f"heads are {head} wide, not FLUX's {sum(rotary)}, and the file does not say how the rotary axes share "
            "them: pass --components FOLDER with a transformer/config.json"
        )
    return TransformerConfig.from_json(
        {
            "in_channels": channels,
            "out_channels": None if out == channels else out,
            "num_layers": count_blocks(shapes, r"double_blocks\.(\d+)\."),
            "num_single_layers": count_blocks(shapes, r"single_blocks\.(\d+)\."),
            "num_attention_heads": width // head,
            "attention_head_dim": head,
            "joint_attention_dim": axes(shapes, "txt_in.weight", 2)[1],
            "pooled_projection_dim": axes(shapes, "vector_in.in_layer.weight", 2)[1],
            "guidance_embeds": any(key.startswith("guidance_in.") for key in shapes),
            "axes_dims_rope": rotary,
        }
    )


def work(config: TransformerConfig, n: int, m: int, k: int) -> Work:
    """One forward of one sample: N image tokens, M text tokens, K tokens that are attended to only."""
    d, mlp, head = config.width, config.mlp_width, config.attention_head_dim
    double, single = config.num_layers, config.num_single_layers
    embedders = [TIME_WIDTH, config.pooled_projection_dim] + [TIME_WIDTH] * config.guidance_embeds
    layers = [Layer(config.in_channels, d, n), Layer(config.joint_attention_dim, d, m)]
    layers += [layer for width in embedders for layer in (Layer(width, d, 1), Layer(d, d, 1))]
    for rows in (n, m):  # the two streams
        layers += [Layer(d, 6 * d, 1, double)]
        layers += [Layer(*pair, rows, double, rounds=True) for pair in ((d, 3 * d), (d, d), (d, mlp), (mlp, d))]
    layers += [Layer(d, 3 * d, 1, single), Layer(d, 3 * d + mlp, n + m, single, rounds=True)]
    layers += [Layer(d, d, n + m, single, rounds=True), Layer(mlp, d, n + m, single, bias=False, rounds=True)]
    layers += [Layer(d, 2 * d, 1), Layer(d, config.velocity_channels, n)]
    return Work(
        layers,
        products=2 * (double + single) * (n + m) * (n + m + k) * d,
        others=(4 * double + 2 * single) * head,  # norms of queries and keys
    )


def misfits(config: TransformerConfig, others: Mapping[str, Any]) -> list[str]:
    """What does not fit between the MM-DiT and the encoders and the autoencoder, as far as these are known."""
    faults = []

    def compare(name: str, key: str, value: int, ours: str, wanted: int) -> None:
        if value != wanted:
            faults.append(f"the {name} does not fit the transformer: {key} is {value}, {ours} is {wanted}")

    if isinstance(t5 := others.get("text_encoder_2"), T5Config):
        compare("text_encoder_2", "d_model", t5.d_model, "joint_attention_dim", config.joint_attention_dim)
    if isinstance(clip := others.get("text_encoder"), CLIPConfig):
        compare("text_encoder", "hidden_size", clip.hidden_size, "pooled_projection_dim", config.pooled_projection_dim)
    if isinstance(vae := others.get("vae"), AutoencoderConfig):
        token = 4 * vae.latent_channels  # of 2 x 2 cells
        out = "out_channels" if config.out_channels else "in_channels"
        compare("vae", "4 x latent_channels", token, out, config.velocity_channels)
        mask = 4 * vae.downscale**2  # a pixel's each, for Fill
        if not faults and config.in_channels not in (token, 2 * token, 2 * token + mask):
            faults.append(
                f"the transformer's in_channels are {config.in_channels}; with this vae they can be {token} (a "
                f"picture's tokens), {2 * token} (and one to follow), or {2 * token + mask} (and a mask)"
            )
    return faults


def _network(config: TransformerConfig, **keywords: Any) -> "Flux":
    from jaxpa.transformer import Flux

    return Flux(config, **keywords)


def _conditions(
    text: "TextEmbedding",
    guidance: "jax.Array | None",
    positions: "jax.Array",
    opening: "tuple[jax.Array, TextEmbedding] | None" = None,
) -> "FluxConditions":
    from jaxpa.transformer import FluxConditions, Opening

    first = None if opening is None else Opening(opening[0], opening[1].txt, opening[1].vec)
    return FluxConditions(text.txt, text.vec, guidance, positions, opening=first)


FLUX = Backbone(
    name="FLUX",
    pipelines="Flux",
    class_names=("FluxTransformer2DModel",),
    config=TransformerConfig,
    network=_network,
    rows=ROWS,
    signature=re.compile(r"^(.*?)(?:double_blocks|single_blocks)\.\d+\."),
    infer=infer,
    work=work,
    # Columns of the first layers, rows of the second. Modulation has one row a sample, but a quarter of the weights.
    rules=(
        (r"\w+_blocks\.(\w+\.)?(mod|qkv\.[qkv]|mlp_in)\.kernel", (None, "model")),
        (r"\w+_blocks\.(\w+\.)?(mod|qkv\.[qkv]|mlp_in)\.bias", ("model",)),
        (r"\w+_blocks\.(\w+\.)?(proj|mlp_out)\.kernel", ("model", None)),
    ),
    stacks=("double_blocks", "single_blocks"),
    # Modulation moves whole channels of every token at once, and is computed once before the loop; embedders and the
    # layers at both ends are few. They stay as they are.
    rounded=re.compile(r"\w+_blocks\.(\w+\.)?(qkv\.[qkv]|proj|mlp_in|mlp_out)\.kernel"),
    to_heads=re.compile(r"\w+_blocks\.(\w+\.)?qkv\.[qkv]\.kernel"),
    from_heads=re.compile(r"\w+_blocks\.(\w+\.)?proj\.kernel"),
    misfits=misfits,
    conditions=_conditions,
    channels_in="img_in",
)
