"""What a request takes on a device that is not here: compiled for it, or estimated if its compiler is missing."""

from dataclasses import replace
from typing import Any

import numpy as np

from jaxpa.checkpoint.load import settings_of
from jaxpa.checkpoint.source import Source
from jaxpa.config import Rounding, Weights
from jaxpa.devices.compiled import compiled, missing
from jaxpa.devices.memory import GIB, Held, transformer_bytes
from jaxpa.devices.plan import Run, images_of, run_of
from jaxpa.devices.programs import Job
from jaxpa.devices.sharding import DATA, MODEL, read_sides
from jaxpa.devices.targets import Target, find
from jaxpa.errors import JaxpaError
from jaxpa.request.groups import Sampling
from jaxpa.request.request import Request
from jaxpa.request.spec import Spec


def parse_mesh(text: str, target: Target) -> tuple[int, int]:
    """`data=2,model=4` -> (2, 4); an axis that is not named is 1. Raises JaxpaError."""
    sides = read_sides(text)
    data, model = sides.get(DATA, 1), sides.get(MODEL, 1)
    if not 1 <= data * model <= target.count:
        raise JaxpaError(f"--mesh {text} takes {data * model} chips, and {target.name} has {target.count}")
    return data, model


def _job_of(run: Run, said: Sampling, dtype: str, weights: Weights | None = None) -> Job:
    """The program of a run's first tau."""
    job = Job(
        run.spec.config.transformer,
        run.grid,
        run.text,
        run.images,
        run.references,
        run.steps,
        guided=run.guided,
        masked=run.context,
        dtype=dtype,
        weights=weights,
        beside=run.beside,
        solver=said.solver,
        cache=said.cache is not None,
    )
    return job if run.preset is None else replace(job, preset=run.preset, above=run.above[0])


def elsewhere(
    source: Source, request: Request, content: dict[str, Any], name: str, mesh: str | None = None
) -> dict[str, Any]:
    """Facts of the sampling program on the device of that name, beside the plan's `content`.

    fits, peak_bytes, usable_bytes, temp_bytes (of one device), mesh, kernel, collectives, cycles or least_seconds, and
    compile_seconds come from `compiled.report` of the program for one tau. peak_seconds is the time that the plan's
    products take at the device's peak. If the compiler is not installed, `method` is "formula" and `needs` says what to
    install. Raises JaxpaError.
    """
    target = find(name)
    run = run_of(request, Spec(source.config, settings_of(source)))
    if (together := request.sampling.batch_size) is not None:
        run = replace(run, images=images_of(request, together))
    sides = parse_mesh(mesh, target) if mesh else None
    chips = target.count if sides is None else sides[0] * sides[1]
    tflop = content["sample_forwards"] * content["tflop_per_forward"] / len(run.gates) / chips
    facts = {
        "device": target.name,
        "chip": target.chip.kind,
        "tflop_per_device": tflop,
        "peak_seconds": tflop * 1e12 / target.chip.flops,
    }
    if need := missing(target):
        held, platform = Held(np.dtype(content["dtype"]).itemsize, Rounding(content["weights"])), target.chip.platform
        load = run.load(run.images, held, platform)
        weights = content["weight_bytes"]["transformer"] + content["lora_bytes"]
        peak = weights + transformer_bytes(load, platform)
        usable = int(target.chip.memory)
        return {
            **facts,
            "method": "formula",
            "needs": need,
            "label": "estimated for one chip, not compiled",
            "peak_bytes": peak,
            "usable_bytes": usable,
            "fits": peak <= usable,
        }
    job = _job_of(run, request.sampling, content["dtype"], content["weights"])
    report = compiled(replace(job, adaptation=source.adaptation), target, sides)
    beside = {part: size for part, size in content["weight_bytes"].items() if part != "transformer"}
    # The plan's weight_bytes are those of all parts; the program's are the network's share on one device.
    return {
        **facts,
        "method": "compiler",
        **report,
        "weight_bytes": content["weight_bytes"],
        "program_weight_bytes": report["weight_bytes"],
        "encoder_bytes": sum(beside.values()),
    }


def format_elsewhere(c: dict[str, Any]) -> str:
    """The facts of `elsewhere` as a small table."""
    peak, usable = c["peak_bytes"] / GIB, c["usable_bytes"] / GIB
    verdict = "fits" if c["fits"] else "does not fit"
    rows = {
        "device": f"{c['device']} ({c['chip']}): {c['label']}",
        "there": f"{verdict}: {peak:.2f} of {usable:.2f} GiB a device",
    }
    if c["method"] == "formula":
        rows["needs"] = f"{c['needs']} compiles the program itself"
        return _table(rows)
    rows["there"] += f", weights {c['program_weight_bytes'] / GIB:.2f}"
    if c["temp_bytes"] is not None:
        rows["there"] += f", temporaries {c['temp_bytes'] / GIB:.2f}"
    rows["mesh"] = ",".join(f"{axis}={size}" for axis, size in c["mesh"].items())
    if c["fits"] or "stretches" in c:
        rows["kernel"] = f"{c['kernel']} attention"
        rows["traffic"] = _collectives(c["collectives"])
        rows["speed"] = f"{c['peak_seconds']:.3g} s at the peak of the products"
        if "cycles" in c:
            rows["speed"] += f"; {c['cycles'] / 1e6:,.0f} M cycles estimated by the compiler, its kernels left out"
        else:
            rows["speed"] += f"; at least {c['least_seconds']:.3g} s with what is read and written"
        rows["compile"] = f"{c['compile_seconds']:.1f} s, tracing {c['trace_seconds']:.1f} s ({c['compiler']})"
    return _table(rows)


def _collectives(collectives: dict[str, dict[str, int]]) -> str:
    found = (f"{each['count']:,} {kind} ({each['bytes'] / 2**20:,.0f} MiB)" for kind, each in collectives.items())
    return ", ".join(found) or "no collectives"


def _table(rows: dict[str, str]) -> str:
    return "\n".join(f"{name:<9}{value}" for name, value in rows.items())
