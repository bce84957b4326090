"""How fast the network runs on this machine, and how fast it could; random weights are as fast as real ones.

    TFLOP/s = exact count (`devices.cost`) / median time of a step;  ceiling = a large matrix product, same type

Two programs are compiled and timed, each from scratch: one sampling step, called from a host loop, and the fused
loop over all steps.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxpa import sampling
from jaxpa.backbones.backbone import BackboneConfig
from jaxpa.backbones.registry import backbone_of
from jaxpa.checkpoint.keys import abstract
from jaxpa.checkpoint.residence import arrange
from jaxpa.config import ScheduleConfig
from jaxpa.devices import cost
from jaxpa.devices.timing import Clock
from jaxpa.encoders.text import TextEmbedding
from jaxpa.errors import whole
from jaxpa.layers import Numbered, precision
from jaxpa.request.spec import grid_of
from jaxpa.schedule import flow_times
from jaxpa.tokens import PATCH, grid_positions

STD = 0.02  # of random weights: activations stay finite at any depth, so clocks and power are those of a real model


@dataclass(frozen=True)
class Workload:
    """What is timed: `batch` rows of height x width pixels, in loops of `steps`, each of which runs `repeats` times.

    Each loop runs once more before, which is not measured. Classifier-free guidance would take two rows an image.
    """

    height: int
    width: int
    text_tokens: int
    batch: int = 1
    steps: int = 4
    repeats: int = 3

    def __post_init__(self) -> None:
        for name in ("text_tokens", "batch", "steps", "repeats"):
            whole(name, getattr(self, name), 1)


def random_model(config: BackboneConfig, dtype: DTypeLike = jnp.float32) -> Any:
    """A network of random weights, made on the device by one program: no host copy, no memory beyond the weights.

    Kernels are hashed from their indices, uniform with standard deviation 0.02; norms are 1, biases 0.
    """
    return arrange(jax.jit(lambda: _random_tree(config, np.dtype(dtype)))())


def _random_tree(config: BackboneConfig, dtype: np.dtype) -> Any:
    flat, structure = jax.tree_util.tree_flatten_with_path(abstract("transformer", config, dtype))
    leaves = [_random(jax.tree_util.keystr(path), seed, leaf) for seed, (path, leaf) in enumerate(flat)]
    return jax.tree_util.tree_unflatten(structure, leaves)


def _random(path: str, seed: int, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    if "scale" in path or "bias" in path:
        return jnp.full(leaf.shape, 1 if "scale" in path else 0, leaf.dtype)
    index = jnp.uint32(seed * 0x9E3779B9 & 0xFFFFFFFF)
    for axis, size in enumerate(leaf.shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    for factor in (0x7FEB352D, 0x846CA68B):  # a 32-bit mixer: every bit of the index reaches every bit of the hash
        index = (index ^ (index >> 16)) * jnp.uint32(factor)
    unit = (index >> 8).astype(jnp.float32) * 2.0**-24  # [0, 1)
    return ((2 * unit - 1) * (STD * 3**0.5)).astype(leaf.dtype)


def bench(model: Any, work: Workload, vae_downscale: int = 8) -> dict[str, Any]:
    """Compile and time sampling with a backbone's module -> what was run, and its figures.

    `step_ms` is the median over all steps of a loop that waits for each; `loop_ms` is the fused loop's time divided by
    its steps. Raises JaxpaError for a size that is not a multiple of a token's.
    """
    grid = grid_of(work.height, work.width, PATCH * vae_downscale)
    tokens = grid[0] * grid[1]
    velocity, x, times = _inputs(model, grid, work)
    step, step_facts = _compiled(lambda *now: sampling.step(*now), velocity, x, times, np.int32(0))
    loop, loop_facts = _compiled(lambda *now: sampling.sample(*now), velocity, x, times)
    before = matmul_ceiling(model.dtype)
    step_seconds = _time_steps(step, velocity, x, times, work.repeats)
    loop_seconds = _seconds(lambda: loop(velocity, x, times), work.repeats)
    flops = work.batch * cost.transformer_flops(model.config, tokens, work.text_tokens)
    machine = _machine(model)
    # Measured before and after the steps: other programs and hot chips lower it, nothing raises it.
    ceiling = machine["devices"] * max(before, matmul_ceiling(model.dtype))
    rate = flops / step_seconds / 1e12
    return {
        **machine,
        **asdict(work),
        "image_tokens": tokens,
        "blocks": _depths(model),
        "compile_seconds": {"step": step_facts["seconds"], "loop": loop_facts["seconds"]},
        "compiled_before": step_facts["cached"] + loop_facts["cached"],
        "program_lines": step_facts["lines"],
        "temp_bytes": loop_facts["temp_bytes"],
        "step_ms": step_seconds * 1e3,
        "loop_ms": loop_seconds * 1e3 / work.steps,
        "tflop_per_step": flops / 1e12,
        "tflops": rate,
        "ceiling_tflops": ceiling,
        "fraction": rate / ceiling,
    }


def _depths(model: Any) -> dict[str, int]:
    """How many blocks each stack of a module has, by the stack's name in words: {"double blocks": 19, ...}."""
    found = {}
    for name in backbone_of(model.config).stacks:
        blocks = getattr(model, name)
        depth = len(blocks) if isinstance(blocks, Numbered) else len(jax.tree.leaves(blocks)[0])
        found[name.replace("_", " ")] = depth
    return found


def _inputs(model: Any, grid: tuple[int, int], work: Workload) -> tuple[Any, jax.Array, jax.Array]:
    """A velocity with random text of unit variance, noise (B, N, C), and the flow times (S + 1,)."""
    config: BackboneConfig = model.config
    more = config.in_channels - config.velocity_channels  # of a picture that the network reads
    dtype, batch, tokens = model.dtype, work.batch, grid[0] * grid[1]

    @jax.jit
    def make() -> tuple[jax.Array, ...]:
        keys = jax.random.split(jax.random.key(0), 3)
        txt = jax.random.normal(keys[0], (batch, work.text_tokens, config.joint_attention_dim), dtype)
        vec = jax.random.normal(keys[1], (batch, config.pooled_projection_dim), dtype)
        x = jax.random.normal(keys[2], (batch, tokens, config.in_channels), jnp.float32)
        return txt, vec, x[..., : config.velocity_channels], x[..., config.velocity_channels :], grid_positions(*grid)

    txt, vec, x, channels, positions = make()
    guidance = jnp.full(batch, 3.5, jnp.float32) if config.guidance_embeds else None
    times = jnp.asarray(flow_times(work.steps, tokens, ScheduleConfig()))
    conditions = backbone_of(config).conditions(TextEmbedding(txt, vec), guidance, positions)
    return (replace(conditions, channels=channels) if more else conditions).bind(model), x, times


def _compiled(function: Callable[..., Any], *arguments: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    """A compiled program, and what compiling took. `function` must be new: JAX remembers what it has traced."""
    with Clock() as clock:
        start = time.perf_counter()
        lowered = jax.jit(function).lower(*arguments)
        program = lowered.compile()
        seconds = time.perf_counter() - start
    memory = program.memory_analysis()
    return program, {
        "seconds": seconds,
        "cached": clock.cached,  # programs that came from the persistent cache
        "lines": lowered.as_text().count("\n"),
        "temp_bytes": getattr(memory, "temp_size_in_bytes", None),
    }


def _time_steps(step: Callable[..., jax.Array], velocity: Any, x: jax.Array, times: jax.Array, repeats: int) -> float:
    """Median seconds of a step in a host loop that waits for each."""
    jax.block_until_ready(step(velocity, x, times, np.int32(0)))
    seconds = []
    for _ in range(repeats):
        y = x
        for i in range(times.shape[0] - 1):
            start = time.perf_counter()
            y = jax.block_until_ready(step(velocity, y, times, np.int32(i)))
            seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def _seconds(run: Callable[[], Any], repeats: int) -> float:
    """Median seconds of a call, after one call that is not counted."""
    jax.block_until_ready(run())
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def matmul_ceiling(dtype: DTypeLike = jnp.float32, size: int | None = None, repeats: int = 5) -> float:
    """The median TFLOP/s of one device in large square matrix products of a dtype; takes about a second.

    size: the side of the matrices; None: 1024 on CPU, 8192 elsewhere.
    """
    accelerator = jax.default_backend() != "cpu"
    n = size or (8192 if accelerator else 1024)
    chain = 16 if accelerator else 4  # products in one call, so that starting it costs little

    def products(x: jax.Array, w: jax.Array) -> jax.Array:
        for _ in range(chain):
            x = jnp.matmul(x, w, precision=precision(dtype))  # the network's own
        return x

    keys = jax.random.split(jax.random.key(0))
    # Scaled so that the products keep unit variance: power, and with it the clock, depends on the numbers.
    make = jax.jit(lambda key, std: (std * jax.random.normal(key, (n, n))).astype(dtype))
    x, w, program = make(keys[0], 1.0), make(keys[1], n**-0.5), jax.jit(products)
    return chain * 2 * n**3 / _seconds(lambda: program(x, w), repeats) / 1e12


def _machine(model: Any) -> dict[str, Any]:
    devices = jax.tree.leaves(model)[0].sharding.device_set  # those that hold the model
    device = next(iter(devices))
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": len(devices),
        "dtype": str(model.dtype),
        "jax": jax.__version__,
        "parameters": sum(x.size for x in jax.tree.leaves(model)),
    }


def format_bench(result: dict[str, Any]) -> str:
    """The dictionary of `bench` as a small table."""
    r, seconds = result, result["compile_seconds"]
    cached = f" ({r['compiled_before']} from the compilation cache)" if r["compiled_before"] else ""
    temp = "" if r["temp_bytes"] is None else f", {r['temp_bytes'] / 2**20:,.0f} MiB beside the weights"
    rows = {
        "machine": f"{r['devices']} x {r['device']} ({r['platform']}), jax {r['jax']}",
        "network": f"{r['parameters']:,} parameters, {r['dtype']}, "
        + " + ".join(f"{count} {name}" for name, count in r["blocks"].items()),
        "input": f"{r['batch']} x {r['width']} x {r['height']} px: {r['image_tokens']} image + "
        f"{r['text_tokens']} text tokens",
        "compile": f"{seconds['step']:.1f} s a step, {seconds['loop']:.1f} s the fused loop{cached}",
        "program": f"{r['program_lines']:,} lines{temp}",
        "step": f"{r['step_ms']:,.2f} ms; in the fused loop {r['loop_ms']:,.2f} ms (median, {r['steps']} steps)",
        "work": f"{r['tflop_per_step']:.4g} TFLOP a step, {r['tflops']:.4g} TFLOP/s",
        "ceiling": f"{r['ceiling_tflops']:.4g} TFLOP/s of a {r['dtype']} matrix product: {r['fraction']:.1%} of it",
    }
    return "\n".join(f"{name:<9}{value}" for name, value in rows.items())
