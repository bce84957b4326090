"""What devices that are not here make of FLUX.1-dev: one row for each, compiled by their own compilers, not run.

    python examples/compile_devices.py            # all rows whose compiler is installed; minutes on two cores
    python examples/compile_devices.py h100 v6e   # the rows whose names begin so

TPU rows need `pip install 'jaxpa[tpu]'`, GPU rows `'jaxpa[gpu-plan]'`. Cycles are the TPU compiler's own estimate of
one step, its attention kernel left out; ms are a roofline of one step's instructions on a GPU (`jaxpa.devices.hlo`).

2026-11-26, jax 0.10.2, jax-cuda13-plugin 0.10.2, 1024 x 1024, 512 text tokens, bfloat16:

    h100            22.48 GiB   82.7 ms (products 60.2, attention 15.0, fusions 7.5)     1003 launches a step
    h100 512        22.40 GiB   24.2 ms (products 20.1, attention 1.7, fusions 2.5)      1004
    h100 batch 4    23.30 GiB  330.6 ms (products 240.7, attention 60.2, fusions 29.7)   1006
    h100 reference  22.80 GiB  167.2 ms (products 120.4, attention 30.1, fusions 16.7)   1062, a step above tau
    h100 int8       14.64 GiB   99.9 ms (products 60.2, attention 15.0, fusions 24.6)    1593
    h100 w8a8       22.63 GiB  103.0 ms (products 60.2, attention 15.0, fusions 27.8)    2468, int8 at bfloat16's rate
    h100x4           5.85 GiB   24.9 ms (products 15.1, attention 3.8, fusions 6.0)      1307, 76 all-reduces of 27 MiB

libtpu 0.0.42.1, M cycles of a step, and of a double and a single block in it:

    v6e-1           22.77 GiB    226.6 (4.10, 3.90)
    v6e-1 512       22.27 GiB     78.5 (1.50, 1.31)
    v6e-1 batch 4   22.62 GiB    905.6, 226.4 an image
    v6e-1 512 x 4   23.34 GiB    305.0 (5.94, 5.04), 76.3 an image
    v6e-1 reference 23.65 GiB    529.0 (10.4, 8.69), a step above tau
    v5e-1 int8      14.59 GiB    588.7 (10.7, 10.1)
    v5e-1 fp8       14.59 GiB    588.7 (10.7, 10.1)
    v5e-1 w8a8      14.33 GiB    504.6 (9.76, 8.37)
    v6e-1 w8a8      14.44 GiB    315.3 (6.01, 5.28)
    v6e-4            5.77 GiB     89.7 (1.97, 1.36) a chip, 76 all-reduces of 27 MiB
    v5p-8            5.80 GiB    113.5 (2.52, 1.72) a chip, 2 all-reduces of 27 MiB in a double block, 1 in a single one
    v5e-4            5.77 GiB    219.7 (4.65, 3.43) a chip, the same all-reduces
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from typing import Any

from jaxpa.config import flux_dev
from jaxpa.devices.compiled import compiled, missing
from jaxpa.devices.programs import Job
from jaxpa.devices.targets import find

DEV = Job(flux_dev().transformer, grid=(64, 64))  # 1024 x 1024
SMALL = replace(DEV, grid=(32, 32))  # 512 x 512
REFERENCE = replace(DEV, references=1, above=19)
ROWS = {
    "h100": DEV, "h100 512": SMALL, "h100 batch 4": replace(DEV, images=4), "h100 reference": REFERENCE,
    "h100 int8": replace(DEV, weights="int8"), "h100 w8a8": replace(DEV, weights="w8a8"), "h100x4": DEV,
    "v6e-1": DEV, "v6e-1 reference": REFERENCE, "v6e-1 512": SMALL, "v6e-1 batch 4": replace(DEV, images=4),
    "v6e-1 512 x 4": replace(SMALL, images=4),
    "v5e-1 int8": replace(DEV, weights="int8"), "v5e-1 fp8": replace(DEV, weights="fp8"),
    "v5e-1 w8a8": replace(DEV, weights="w8a8"), "v6e-1 w8a8": replace(DEV, weights="w8a8"),
    "v5p-8": DEV, "v5e-4": DEV, "v6e-4": DEV,
}  # fmt: skip
HEAD = ("device", "mesh", "fits", "GiB: peak", "weights", "temporaries", "kernel", "a step", "collectives a step",
        "launches", "compile s")  # fmt: skip
GIB = 2.0**30


def rows(chosen: list[str]) -> Iterator[tuple[str, ...]]:
    for name, job in ROWS.items():
        target = find(name.split()[0])
        if (not chosen or any(name.startswith(each) for each in chosen)) and not missing(target):
            yield row(name, compiled(job, target))


def row(name: str, report: dict[str, Any]) -> tuple[str, ...]:
    gib = [f"{(report[key] or 0) / GIB:.2f}" for key in ("peak_bytes", "weight_bytes", "temp_bytes")]
    start = (name, f"{report['mesh']['data']} x {report['mesh']['model']}", "yes" if report["fits"] else "no", *gib)
    if "stretches" not in report:
        return (*start, *["refused"] * 5)
    step = report["stretches"][0]
    collectives = ", ".join(
        f"{each['count']} {kind} {each['bytes'] / 2**20:.0f} MiB" for kind, each in step["collectives"].items()
    )
    facts = (report["kernel"], collectives or "-", str(step.get("launches", "-")), f"{report['compile_seconds']:.0f}")
    return (*start, facts[0], speed(step), *facts[1:])


def speed(step: dict[str, Any]) -> str:
    """Of one step: M cycles, and those of a double and a single block; or ms by kind of instruction."""
    if "cycles" in step:
        blocks = " / ".join(f"{block['cycles'] / 1e6:.2f}" for block in step["blocks"])
        return f"{step['cycles'] / 1e6:,.1f} M cycles ({blocks})"
    kinds = ", ".join(f"{kind} {1e3 * seconds:.1f}" for kind, seconds in step["seconds"].items() if seconds > 5e-5)
    return f"{1e3 * step['least_seconds']:.1f} ms ({kinds})"


def main() -> None:
    import jax

    print(f"{date.today()}, jax {jax.__version__}; compiled, not run\n")
    print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|", flush=True)
    for each in rows(sys.argv[1:]):
        print("| " + " | ".join(each) + " |", flush=True)


if __name__ == "__main__":
    main()
