"""Counted work against the figures of `anchors`, the networks' own traced programs, XLA, and a counting velocity."""

import math
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_checkpoint import CONFIG

from jaxpa import personalize
from jaxpa.checkpoint.keys import abstract, leaves
from jaxpa.config import AutoencoderConfig, CLIPConfig, T5Config, TransformerConfig, flux_dev, flux_schnell
from jaxpa.devices import cost
from jaxpa.personalize import Phase, Task
from jaxpa.schedule import flow_times, steps_above
from jaxpa.tokens import Routing, identity_source

FLUX = flux_dev()
F32 = np.dtype(np.float32)


# Published and hand-made figures -----------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "tflop"), [(4096, 74.385), (1024, 21.503), (256, 10.348)])
def test_transformer(tokens, tflop):
    flops = cost.transformer_flops(FLUX.transformer, tokens, 512)
    assert round(flops / 1e12, 3) == tflop
    # The closed form of the blocks: all but embedders, modulation and the final layer, 0.2% at most.
    s, d = tokens + 512, 3072
    blocks = 57 * (24 * s * d**2 + 4 * s**2 * d)
    assert blocks < flops < 1.003 * blocks


def test_context_is_attended_to_only():
    config, n, m, k = FLUX.transformer, 4096, 512, 700
    more = cost.transformer_flops(config, n, m, k) - cost.transformer_flops(config, n, m)
    assert more == 57 * 4 * (n + m) * k * config.width


def test_text_and_pictures():
    assert cost.t5_flops(FLUX.text_encoder_2, 512) / 1e12 == pytest.approx(4.85, abs=0.01)
    assert cost.autoencoder_flops(FLUX.vae, 1024, 1024) / 1e12 == pytest.approx(10.5, abs=0.05)
    assert cost.clip_flops(FLUX.text_encoder) < 0.02e12


@pytest.mark.parametrize("config", [FLUX, flux_schnell(), CONFIG], ids=["dev", "schnell", "small"])
def test_weights(config):
    """Parameters from the tables are those of the networks."""
    counted = cost.weight_parameters(config)
    assert counted == {name: sum(x.size for x in leaves(name, getattr(config, name), "jaxpa")) for name in counted}
    assert cost.weight_bytes(config, 2) == {name: 2 * count for name, count in counted.items()}
    if config is FLUX:
        assert counted["transformer"] == 11_901_408_320


def test_needs_no_jax():
    code = "import sys, jaxpa.devices.cost; sys.exit('jax' in sys.modules or 'flax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The networks' own programs ----------------------------------------------------------------------------------


def products(jaxpr: Any) -> int:
    """FLOP of the matrix products and convolutions that a traced program holds, loops multiplied out."""
    total = 0
    for eqn in jaxpr.eqns:
        out = math.prod(eqn.outvars[0].aval.shape) if eqn.outvars else 0
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            total += 2 * out * math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
        elif eqn.primitive.name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            total += 2 * out * math.prod(kernel) // kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
        assert eqn.primitive.name != "while"
        inner = [x for x in eqn.params.values() if hasattr(x, "eqns") or hasattr(x, "jaxpr")]
        if eqn.primitive.name == "cond":  # one for each platform, the last one for all others: all do the same
            inner = [eqn.params["branches"][-1]]
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        total += times * sum(products(getattr(x, "jaxpr", x)) for x in inner)
    return total


def shaped(*shape: int, dtype: Any = jnp.float32) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


def forward(config: TransformerConfig, n: int, m: int, k: int = 0) -> tuple[Any, tuple[Any, ...]]:
    """The MM-DiT as a function, and abstract arguments for one sample."""
    routing = None
    if k:
        routing = Routing(
            shaped(1, n, dtype=jnp.int32),
            context=shaped(1, k, dtype=jnp.int32),
            positions=shaped(1, k, 3),
            length=shaped(1, dtype=jnp.int32),
        )
    inputs = (shaped(1, n, config.in_channels), shaped(1, m, config.joint_attention_dim),
              shaped(1, config.pooled_projection_dim), shaped(1), shaped(1), shaped(n, 3), routing)  # fmt: skip
    return (lambda model, *args: model(*args)), (abstract("transformer", config, F32), *inputs)


def traced(function: Any, arguments: tuple[Any, ...]) -> int:
    return products(jax.make_jaxpr(function)(*arguments).jaxpr)


# Small and full-size widths; from 512 x 512 logits on, attention on CPU is another program with the same products.
@pytest.mark.parametrize("config", [CONFIG.transformer, FLUX.transformer, flux_schnell().transformer])
@pytest.mark.parametrize(("n", "m", "k"), [(12, 5, 0), (12, 5, 3), (1024, 512, 0)])
def test_transformer_program(config, n, m, k):
    assert traced(*forward(config, n, m, k)) == cost.transformer_flops(config, n, m, k)


@pytest.mark.parametrize("config", [CONFIG, FLUX], ids=["small", "full"])
def test_text_programs(config):
    t5, clip = (abstract(name, getattr(config, name), F32) for name in ("text_encoder_2", "text_encoder"))
    ids = shaped(1, 12, dtype=jnp.int32)
    assert traced(lambda t5, ids: t5(ids), (t5, ids)) == cost.t5_flops(config.text_encoder_2, 12)
    assert traced(lambda clip, ids: clip(ids), (clip, ids)) == cost.clip_flops(config.text_encoder, 12)


PLAIN = AutoencoderConfig(block_out_channels=(32, 64, 64), layers_per_block=1, mid_block_add_attention=False)


@pytest.mark.parametrize("config", [CONFIG.vae, FLUX.vae, PLAIN], ids=["small", "full", "plain"])
def test_autoencoder_programs(config):
    height, width, step = 48, 32, config.downscale
    vae = abstract("vae", config, F32)
    latents = shaped(1, height // step, width // step, config.latent_channels)
    decoded = traced(lambda vae, z: vae.decode(z), (vae, latents))
    assert decoded == cost.autoencoder_flops(config, height, width)
    encoded = traced(lambda vae, x: vae.encode(x), (vae, shaped(1, height, width, 3)))
    assert encoded == cost.autoencoder_flops(config, height, width, "encode")


def xla(function: Any, *arguments: Any) -> float:
    """FLOP as XLA counts them: element by element work too, the body of a loop once."""
    analysis = jax.jit(function).lower(*arguments).cost_analysis()
    assert isinstance(analysis, dict)
    return analysis["flops"]


def test_xla_agrees():
    """On one block of each kind at full width, where what we leave out is least: under 0.5%, and never negative."""
    config = TransformerConfig(num_layers=1, num_single_layers=1)
    function, arguments = forward(config, 256, 64)
    ids = shaped(1, 77, dtype=jnp.int32)
    t5, clip = T5Config(num_layers=1), CLIPConfig(num_hidden_layers=1)
    ratios = [
        xla(function, *arguments) / cost.transformer_flops(config, 256, 64),
        xla(lambda net, ids: net(ids), abstract("text_encoder_2", t5, F32), ids) / cost.t5_flops(t5, 77),
        xla(lambda net, ids: net(ids), abstract("text_encoder", clip, F32), ids) / cost.clip_flops(clip, 77),
    ]
    assert all(1 <= ratio < 1.005 for ratio in ratios), ratios


def test_xla_agrees_on_pictures():
    """XLA does not count taps on padding: under 1% less at 512 x 512, where borders are short.

    A larger picture's attention is a loop, whose body XLA counts once.
    """
    vae = abstract("vae", FLUX.vae, F32)
    decoded = xla(lambda vae, z: vae.decode(z), vae, shaped(1, 64, 64, 16))
    encoded = xla(lambda vae, x: vae.encode(x), vae, shaped(1, 512, 512, 3))
    assert decoded == pytest.approx(cost.autoencoder_flops(FLUX.vae, 512, 512), rel=1e-2)
    assert encoded == pytest.approx(cost.autoencoder_flops(FLUX.vae, 512, 512, "encode"), rel=1e-2)


# Forwards of a personalised picture --------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "references", "images", "forwards"),
                         [("layer", 1, 1, 47), ("layer", 1, 2, 47 + 28), ("layer", 2, 3, 3 * 28 + 2 * 19),
                          ("token", 1, 1, 28), ("token", 3, 1, 28), ("layer", 0, 1, 28)])  # fmt: skip
def test_published_forwards(level, references, images, forwards):
    """28 steps, tau 0.6 at 4096 tokens: 19 steps are above it."""
    above = int(steps_above(jnp.asarray(flow_times(28, 4096, FLUX.scheduler)), 0.6))
    assert above == 19
    assert cost.sample_forwards(above, 28, references, images, level, late_context=False) == forwards


def test_guidance():
    plain = cost.sample_forwards(19, 28, 2, 3, "layer", late_context=False)
    assert cost.sample_forwards(19, 28, 2, 3, "layer", False, guided=True) == plain + 3 * 28
    with pytest.raises(ValueError, match="29 steps above tau out of 28"):
        cost.sample_forwards(29, 28, 1, 1, "layer", False)


@pytest.mark.parametrize("level", ["layer", "token"])
@pytest.mark.parametrize("late_context", [False, True])
@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_counting_velocity(level, late_context, tau):
    """The method itself, step by step, with a velocity that counts the rows it is asked for."""
    steps, references, images, n = 6, 2, 3, 4
    rows = 0

    def velocity(x, t, routing=None):
        nonlocal rows
        assert x.shape[0] == t.shape[0]
        rows += x.shape[0]
        return jnp.zeros_like(x)

    times = jnp.asarray(flow_times(steps, n, FLUX.scheduler))
    routing = Routing(identity_source(references + images, n))
    path = jnp.zeros((steps + 1, references, n, 2))
    task = Task(path, jnp.ones(steps), times, jnp.float32(tau), Phase(velocity, routing),
                Phase(velocity, routing if late_context else None), level=level)  # fmt: skip
    with jax.disable_jit():  # every step asks, instead of the trace
        personalize.sample(task, jnp.zeros((images, n, 2)))
    above = int(personalize.gate(task))
    assert rows == cost.sample_forwards(above, steps, references, images, level, late_context)
