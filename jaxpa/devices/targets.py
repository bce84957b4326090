"""Devices by the names under which they are rented: what XLA calls them, what they hold, and their peak speed.

    target = find("v6e-4");  devices = compile_only(target)  # can be compiled for, not run on

A TPU's name counts chips ("v6e-4": four), but of v4 and v5p it counts TensorCores, two on a chip ("v5p-8": four chips).
A GPU's count follows an x ("h100x8": one host). Figures are the makers' public ones for dense bfloat16 products.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal

from jaxpa.devices.memory import GIB
from jaxpa.errors import JaxpaError


@dataclass(frozen=True)
class Chip:
    """One device, as XLA counts them.

    memory     bytes that a program can use: a TPU's less what the runtime keeps, 95% of a GPU's
    flops      a second, dense, bfloat16 in and float32 inside
    bandwidth  bytes a second of the device's memory
    """

    kind: str
    platform: Literal["tpu", "cuda"]
    memory: float
    flops: float
    bandwidth: float


@dataclass(frozen=True)
class GPU(Chip):
    """What XLA's code generator asks of a GPU."""

    capability: tuple[int, int] = (9, 0)
    cores: int = 132
    clock: float = 1.98  # GHz
    cache: int = 50  # MiB, L2
    shared: int = 228  # KiB of a multiprocessor; a block can have one less
    threads: int = 2048  # of a multiprocessor


@dataclass(frozen=True)
class Target:
    """`count` chips that are connected; `topology` is the name that libtpu has for the slice that they come from."""

    name: str
    chip: Chip
    count: int = 1
    topology: str = ""


def _gpu(kind: str, memory: float, teraflops: float, bandwidth: float, **details: Any) -> GPU:
    return GPU(kind, "cuda", 0.95 * memory * GIB, teraflops * 1e12, bandwidth * 1e12, **details)


_ADA = {"capability": (8, 9), "shared": 100, "threads": 1536}
_AMPERE = {"capability": (8, 0), "cores": 108, "clock": 1.41, "cache": 40, "shared": 164}
GPUS = {
    "h100": _gpu("H100 SXM", 80, 989, 3.35),
    "h200": _gpu("H200 SXM", 141, 989, 4.8),
    "a100": _gpu("A100 SXM 80GB", 80, 312, 2.039, **_AMPERE),
    "a100-40gb": _gpu("A100 SXM 40GB", 40, 312, 1.555, **_AMPERE),
    "l40s": _gpu("L40S", 48, 362, 0.864, cores=142, clock=2.52, cache=96, **_ADA),
    "l4": _gpu("L4", 24, 121, 0.3, cores=58, clock=2.04, cache=48, **_ADA),
    "rtx4090": _gpu("GeForce RTX 4090", 24, 165, 1.008, cores=128, clock=2.52, cache=72, **_ADA),
    "rtx4080": _gpu("GeForce RTX 4080", 16, 97.5, 0.717, cores=76, clock=2.51, cache=64, **_ADA),
}
TPUS = {
    "v4": Chip("TPU v4", "tpu", 30.75 * GIB, 275e12, 1.228e12),
    "v5e": Chip("TPU v5e", "tpu", 15.75 * GIB, 197e12, 0.819e12),
    "v5p": Chip("TPU v5p", "tpu", 95.74 * GIB, 459e12, 2.765e12),
    "v6e": Chip("TPU v6e", "tpu", 31.25 * GIB, 918e12, 1.64e12),
}
CORES = {"v4": 2, "v5p": 2}  # TensorCores of a chip, where the name counts them
# Slices by chips. A single chip is compiled for as one of a host's four: libtpu describes whole hosts.
FLAT = {1: "2x2", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8"}
CUBES = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4"}
EXAMPLES = "v5e-1, v5e-8, v5p-8, v6e-1, v6e-4, h100, h100x8"


def find(name: str) -> Target:
    """The target of a name. Raises JaxpaError for one that is not known, with those that are."""
    lower = name.lower()
    if tpu := re.fullmatch(r"(v\w+)-(\d+)", lower):
        kind, number = tpu[1], int(tpu[2])
        if kind in TPUS:
            slices, cores = CUBES if kind in CORES else FLAT, CORES.get(kind, 1)
            if number % cores == 0 and number // cores in slices:
                count = number // cores
                return Target(lower, TPUS[kind], count, f"{kind}:{slices[count]}")
            sizes = ", ".join(f"{kind}-{cores * count}" for count in slices)
            raise JaxpaError(f"--device {name}: {kind} comes as {sizes}")
    gpu = re.fullmatch(rf"({'|'.join(GPUS)})(?:x(\d+))?", lower)
    if gpu:
        count = int(gpu[2] or 1)
        if not 1 <= count <= 8:
            raise JaxpaError(f"--device {name}: a host has 1 to 8 GPUs, not {count}")
        return Target(lower, GPUS[gpu[1]], count)
    known = ", ".join([*(f"{kind}-N" for kind in TPUS), *(f"{kind}[xN]" for kind in GPUS)])
    raise JaxpaError(f"--device {name} is not known: {known} (for instance {EXAMPLES})")


def compile_only(target: Target) -> list[Any]:
    """Devices to compile for. The platform's compiler must be installed; no such device need be there."""
    from jax.experimental import topologies

    if isinstance(target.chip, GPU):
        config, shape = description(target.chip), f"1x1x{target.count}"
        found = topologies.get_topology_desc(target.name, "cuda", target_config=config, topology=shape)
    else:
        found = topologies.get_topology_desc(target.topology, "tpu")
    return list(found.devices)[: target.count]


def description(chip: GPU) -> str:
    """XLA's GpuTargetConfigProto as text: the limits of the architecture, and the figures of the chip."""
    major, minor = chip.capability
    features = "feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""
    return f"""
gpu_device_info {{
  name: "{chip.kind}" device_vendor: "NVIDIA Corporation"
  cuda_compute_capability {{ major: {major} minor: {minor} {features} }}
  core_count: {chip.cores} fpus_per_core: {64 if (major, minor) == (8, 0) else 128} clock_rate_ghz: {chip.clock}
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: {chip.threads}
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_core: {chip.shared * 1024} shared_memory_per_block: 49152
  shared_memory_per_block_optin: {(chip.shared - 1) * 1024} l2_cache_size: {chip.cache * 2**20}
  device_memory_size: {round(chip.memory / 0.95)} memory_bandwidth: {round(chip.bandwidth)}
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0" dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
"""
