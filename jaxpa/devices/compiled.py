"""A program compiled for a device that is not here, by the device's own compiler, and what that compiler makes of it.

    report = compiled(job, find("v6e-4"))         # in a process of its own, on the CPU

The program is compiled, not run. Its memory, fusions, layouts, kernels and collectives are those that the device would
have. On TPU, `cycles` is the compiler's static estimate, without overlap and without the inside of Pallas kernels. A
GPU's compiler estimates nothing; `least_seconds` is what arithmetic and memory traffic take at the peak of each.

XLA's TPU and CUDA compilers are libraries (`pip install 'jaxpa[tpu]'`, `'jaxpa[gpu-plan]'`) that do not need the
device. They read their environment when JAX starts, and must not take a device that is there, so they run in their own
process.
"""

import json
import math
import os
import pickle
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from typing import Any

from jaxpa.devices import hlo
from jaxpa.devices.programs import Job, program
from jaxpa.devices.targets import GPU, Target, compile_only
from jaxpa.errors import JaxpaError

LABEL = "compiled, not run"
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",  # takes neither a GPU nor a TPU that is there
    "CUDA_VISIBLE_DEVICES": "",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",  # no metadata server to ask
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "JAX_TRACEBACK_FILTERING": "off",
    # Autotuning needs the device. Untuned Triton products would be far from those chosen there; cuBLAS's are not.
    "XLA_FLAGS": "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false",
}
PLUGINS = {"tpu": ("libtpu",), "cuda": ("jax_cuda13_plugin", "jax_cuda12_plugin")}
EXTRAS = {"tpu": "tpu", "cuda": "gpu-plan"}


def missing(target: Target) -> str | None:
    """The command that installs a target's compiler; None if it is installed."""
    platform = target.chip.platform
    if any(find_spec(name) for name in PLUGINS[platform]):
        return None
    return f"pip install 'jaxpa[{EXTRAS[platform]}]'"


def meshes(job: Job, target: Target) -> list[tuple[int, int]]:
    """(data, model) that use all chips and divide rows and heads, least communication first."""
    n, rows, heads = target.count, job.images, job.config.num_attention_heads
    return [(n // m, m) for m in range(1, n + 1) if n % m == 0 and rows % (n // m) == 0 and heads % m == 0]


def compiled(job: Job, target: Target, mesh: tuple[int, int] | None = None) -> dict[str, Any]:
    """The report of a job's program on a target; see `report`. mesh: (data, model); None: the first that fits.

    Raises JaxpaError if no mesh of all chips divides the work, or if the compiler fails for other reasons than memory.
    """
    if need := missing(target):
        raise JaxpaError(f"compiling for {target.name} needs its compiler: {need}")
    candidates = meshes(job, target) if mesh is None else [mesh]
    if not candidates:
        raise JaxpaError(
            f"{target.count} chips divide neither {job.images} images nor {job.config.num_attention_heads} heads: "
            "say --mesh data=D,model=M"
        )
    result: dict[str, Any] = {"fits": False}
    for each in candidates:
        result = _apart(job, target, each)
        if result["fits"]:
            break
    return result


def _apart(job: Job, target: Target, mesh: tuple[int, int]) -> dict[str, Any]:
    """`report`, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "jaxpa.devices.compiled"],
        input=pickle.dumps((job, target, mesh)),
        capture_output=True,
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        reasons = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
        raise JaxpaError(f"compiling for {target.name} failed: {(reasons or lines or ['no message'])[-1][:500]}")
    return json.loads(done.stdout.splitlines()[-1])


def report(job: Job, target: Target, mesh: tuple[int, int]) -> dict[str, Any]:
    """Compile in this process, whose environment must be `ENVIRONMENT`, and read the compiled program.

    Bytes are of one device. `collectives` (count and bytes by kind), `cycles`, `launches` and `seconds` are sums over
    the whole sampling, loops multiplied by their trips; `stretches` has those of one step, for every loop over steps.
    """
    import jax
    import numpy as np
    from jax.sharding import AxisType, Mesh

    data, model = mesh
    devices = np.array(compile_only(target)[: data * model]).reshape(data, model)
    grid = Mesh(devices, ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    function, arguments = program(job, grid, target.chip.platform)
    start = time.perf_counter()
    with jax.set_mesh(grid):
        lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=(target.chip.platform,))
    traced = time.perf_counter() - start
    weights = sum(_shard_bytes(leaf) for leaf in jax.tree.leaves(arguments[0]))
    facts = {
        "label": LABEL,
        "device": target.name,
        "chip": target.chip.kind,
        "mesh": {"data": data, "model": model},
        "usable_bytes": int(target.chip.memory),
        "weight_bytes": weights,
        "trace_seconds": traced,
        "jax": jax.__version__,
        "compiler": _compiler(target),
    }
    try:
        executable = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        used = re.search(r"[Uu]sed ([\d.]+)([GM]) of ([\d.]+)G hbm", str(error))
        if used is None:
            raise
        peak = float(used[1]) * (2**30 if used[2] == "G" else 2**20)
        return {**facts, "fits": False, "peak_bytes": int(peak), "temp_bytes": None, "kernel": None, "refused": used[0]}
    facts["compile_seconds"] = time.perf_counter() - start - traced
    memory = executable.memory_analysis()
    sizes = {key: getattr(memory, f"{key}_size_in_bytes") for key in ("argument", "output", "temp", "alias")}
    whole = sizes["argument"] + sizes["output"] + sizes["temp"] - sizes["alias"]
    peak = max(getattr(memory, "peak_memory_in_bytes", 0), 0) or whole
    return {
        **facts,
        **_read(executable.as_text() or "", job, target),
        "temp_bytes": sizes["temp"],
        "argument_bytes": sizes["argument"],
        "peak_bytes": peak,
        "fits": peak <= target.chip.memory,
    }


def _shard_bytes(leaf: Any) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _read(text: str, job: Job, target: Target) -> dict[str, Any]:
    gpu = isinstance(target.chip, GPU)
    peak = hlo.Peak(target.chip.flops, target.chip.bandwidth) if gpu else None
    trips = () if job.above is None else (job.above, job.steps - job.above)  # the loops before and after tau
    root = hlo.read(text, peak, trips).root
    counted = [node for node in root.loops if node.trips in (None, job.steps, *trips)]
    # A loop over blocks (their modulation, before the steps) may happen to have as many trips; steps have one inside.
    stretches = [node for node in counted if node.loops] or counted
    whole = hlo.total(root)
    kernels = sorted(whole.kernels)
    return {
        **_figures(whole, gpu),
        "kernel": ", ".join(kernels) or "xla",
        "stretches": [
            {"trips": node.trips, **_figures(hlo.total(node), gpu), "blocks": _blocks(node, gpu)} for node in stretches
        ],
    }


def _blocks(node: hlo.Node, gpu: bool) -> list[dict[str, Any]]:
    """One block's figures, for each loop over depth inside a step, or inside a step's loop over groups of rows."""
    groups = len(node.loops) == 1 and len(node.loops[0].loops) > 1
    loops = node.loops[0].loops if groups else node.loops
    return [{"trips": inner.trips, **_figures(hlo.total(inner), gpu)} for inner in loops]


def _figures(node: hlo.Node, gpu: bool) -> dict[str, Any]:
    kinds = [kind for kind in hlo.COLLECTIVES if node.collectives[kind]]
    facts: dict[str, Any] = {
        "collectives": {k: {"count": node.collectives[k], "bytes": node.collectives[f"{k} bytes"]} for k in kinds},
        "kernels": dict(node.kernels),
    }
    if not gpu:
        return {**facts, "cycles": node.cycles}
    seconds = {kind: value for kind, value in node.seconds.items() if kind != "TFLOP"}
    return {**facts, "launches": node.launches, "seconds": seconds, "least_seconds": sum(seconds.values())}


def _compiler(target: Target) -> str:
    from importlib.metadata import PackageNotFoundError, version

    for name in ("libtpu",) if target.chip.platform == "tpu" else ("jax-cuda13-plugin", "jax-cuda12-plugin"):
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return "unknown"


if __name__ == "__main__":
    print(json.dumps(report(*pickle.load(sys.stdin.buffer))))
