"""What a run costs, before anything loads: floating point operations, bytes of weights, forwards of the network.

A network is a table of linear layers, each applied to a number of rows (tokens, latent cells, pixels):

    FLOP = 2 * (sum of rows * inputs * outputs  +  attention's two products)

Each multiply-add counts 2, in every linear layer and convolution, embedders and modulation included, and in attention's
logits and weighted values. Element-wise work (norms, rotations, softmax, activations, gates, biases, residuals) and the
look-up of embeddings do not count; a convolution's taps on padding do. The number of parameters follows from the same
tables. This is pure Python: nothing here needs JAX.
"""

from functools import lru_cache
from typing import Literal

from jaxpa.backbones.backbone import BackboneConfig
from jaxpa.backbones.registry import backbone_of
from jaxpa.backbones.tables import Layer, Work
from jaxpa.config import WIDE, AutoencoderConfig, CLIPConfig, FluxConfig, Rounding, T5Config

Level = Literal["layer", "token"]


def transformer_flops(config: BackboneConfig, image_tokens: int, text_tokens: int, context_tokens: int = 0) -> int:
    """One forward of one sample (B = 1). Context tokens are attended to, but are projected in their own row.

    FLUX.1-dev at 1024 x 1024 with 512 text tokens: 74.385 TFLOP.
    """
    return backbone_of(config).work(config, image_tokens, text_tokens, context_tokens).flops


def t5_flops(config: T5Config, tokens: int) -> int:
    """One prompt of `tokens` tokens, padding included. T5-XXL, 512 tokens: 4.845 TFLOP."""
    return _t5(config, tokens).flops


def clip_flops(config: CLIPConfig, tokens: int = 77) -> int:
    """One prompt of `tokens` tokens, padding included. CLIP-L, 77 tokens: 0.013 TFLOP."""
    return _clip(config, tokens).flops


def autoencoder_flops(
    config: AutoencoderConfig, height: int, width: int, which: Literal["decode", "encode"] = "decode"
) -> int:
    """One picture of height x width pixels, to latents or from them. FLUX.1 at 1024 x 1024: decode 10.5 TFLOP."""
    return (_decoder if which == "decode" else _encoder)(config, height, width).flops


def weight_parameters(config: FluxConfig) -> dict[str, int]:
    """The number of parameters of each component, by the name of its folder."""
    return {
        "transformer": backbone_of(config.transformer).work(config.transformer, 0, 0, 0).parameters,
        "vae": _encoder(config.vae, 0, 0).parameters + _decoder(config.vae, 0, 0).parameters,
        "text_encoder": _clip(config.text_encoder, 0).parameters,
        "text_encoder_2": _t5(config.text_encoder_2, 0).parameters,
    }


def weight_bytes(config: FluxConfig, itemsize: int, weights: Rounding = WIDE) -> dict[str, int]:
    """Bytes of each component's weights, by the name of its folder; a number takes `itemsize` (bfloat16: 2).

    weights: of the blocks of the transformer and of T5 (`jaxpa.quantised`), one byte a number and four an output.
    """
    return dict(_weight_bytes(config, itemsize, weights))


@lru_cache(maxsize=64)  # a plan asks several times, and a batch plans every line
def _weight_bytes(config: FluxConfig, itemsize: int, weights: Rounding) -> dict[str, int]:
    sizes = {name: count * itemsize for name, count in weight_parameters(config).items()}
    if weights.transformer is not None:
        sizes["transformer"] -= backbone_of(config.transformer).work(config.transformer, 0, 0, 0).saved(itemsize)
    if weights.text_encoder_2 is not None:
        sizes["text_encoder_2"] -= _t5(config.text_encoder_2, 0).saved(itemsize)
    return sizes


def sample_forwards(
    steps_above: int,
    steps: int,
    references: int,
    images: int,
    level: Level,
    late_context: bool,
    guided: bool = False,
) -> int:
    """The number of rows that personalised sampling sends through the network, each one forward of one sample.

    steps_above: steps that start above tau (`schedule.steps_above`). At level "layer" the references' rows run above
    tau too; at level "token" they follow their path without forwards. late_context: the references are attended to
    after tau, so their rows run there too. guided: classifier-free guidance, two rows an image; references are never
    guided.

    Tau 0.6, 28 steps, 1024 x 1024 (19 steps above tau), one reference: 47 = 28 + 19, and 28 for each further image.
    Raises ValueError unless 0 <= steps_above <= steps.
    """
    if not 0 <= steps_above <= steps:
        raise ValueError(f"{steps_above} steps above tau out of {steps}")
    early = references if level == "layer" else 0
    late = references if late_context else 0
    own = steps * images * (2 if guided else 1)
    return own + steps_above * early + (steps - steps_above) * late


def _t5(config: T5Config, m: int) -> Work:
    d, inner, depth = config.d_model, config.num_heads * config.d_kv, config.num_layers
    pairs = ((d, 3 * inner), (inner, d), (d, 2 * config.d_ff), (config.d_ff, d))
    norms = (2 * depth + 1) * d
    bias = config.relative_attention_num_buckets * config.num_heads
    return Work(
        [Layer(*pair, m, depth, bias=False, rounds=True) for pair in pairs],
        products=2 * depth * m * m * inner,
        others=config.vocab_size * d + bias + norms,
    )


def _clip(config: CLIPConfig, m: int) -> Work:
    d, mlp, depth = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    norms = 2 * (2 * depth + 1) * d  # scale and bias
    return Work(
        [Layer(*pair, m, depth) for pair in ((d, 3 * d), (d, d), (d, mlp), (mlp, d))],
        products=2 * depth * m * m * d,
        others=(config.vocab_size + config.max_position_embeddings) * d + norms,
    )


def _conv(inputs: int, outputs: int, rows: int) -> Layer:
    return Layer(9 * inputs, outputs, rows)


def _resnet(inputs: int, outputs: int, rows: int) -> Work:
    shortcut = [] if inputs == outputs else [Layer(inputs, outputs, rows)]
    layers = [_conv(inputs, outputs, rows), _conv(outputs, outputs, rows), *shortcut]
    return Work(layers, others=2 * (inputs + outputs))


def _resnets(count: int, inputs: int, outputs: int, rows: int) -> list[Work]:
    return [_resnet(outputs if i else inputs, outputs, rows) for i in range(count)]


def _middle(config: AutoencoderConfig, rows: int) -> list[Work]:
    """Two resnets at the lowest resolution, with attention (if configured) between them."""
    width = config.block_out_channels[-1]
    attention = Work([Layer(width, width, rows, 4)], products=2 * rows * rows * width, others=2 * width)
    return _resnets(2, width, width, rows) + [attention] * config.mid_block_add_attention


def _ends(first: tuple[int, int, int], last: tuple[int, int, int]) -> Work:
    """The convolutions (inputs, outputs, rows) at both ends, with the norm before the last."""
    return Work([_conv(*first), _conv(*last)], others=2 * last[0])


def _encoder(config: AutoencoderConfig, height: int, width: int) -> Work:
    widths, latent = config.block_out_channels, height * width // config.downscale**2
    parts = [_ends((config.in_channels, widths[0], height * width), (widths[-1], 2 * config.latent_channels, latent))]
    for i, channels in enumerate(widths):
        rows = height * width // 4**i
        parts += _resnets(config.layers_per_block, widths[max(i - 1, 0)], channels, rows)
        if i < len(widths) - 1:
            parts += [Work([_conv(channels, channels, rows // 4)])]
    return _together(parts + _middle(config, latent))


def _decoder(config: AutoencoderConfig, height: int, width: int) -> Work:
    widths, latent = config.block_out_channels[::-1], height * width // config.downscale**2
    parts = [_ends((config.latent_channels, widths[0], latent), (widths[-1], config.out_channels, height * width))]
    for i, channels in enumerate(widths):
        rows = latent * 4**i
        parts += _resnets(config.layers_per_block + 1, widths[max(i - 1, 0)], channels, rows)
        if i < len(widths) - 1:
            parts += [Work([_conv(channels, channels, rows * 4)])]
    return _together(parts + _middle(config, latent))


def _together(parts: list[Work]) -> Work:
    layers = [layer for part in parts for layer in part.layers]
    return Work(layers, sum(part.products for part in parts), sum(part.others for part in parts))
