"""What `jaxpa info` says about a checkpoint, from headers and configs alone."""

import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any

from jaxpa.backbones.variants import VARIANTS
from jaxpa.checkpoint.load import settings_of
from jaxpa.checkpoint.parts import Part
from jaxpa.checkpoint.source import resolve
from jaxpa.config import VariantName, Weights
from jaxpa.errors import printable


def info(
    source: str | Path, components: str | Path | None = None, variant: VariantName | None = None
) -> dict[str, Any]:
    """Layout, types, sizes, configurations and every fault of a checkpoint, as JSON takes it.

    No tensor is read, nothing is downloaded. `loads` says whether it would load: all of it where it is a pipeline (or
    components are named), else the components that it holds. Raises CheckpointError where there is no checkpoint.
    """
    found = resolve(source, components, download=False, variant=variant)
    if found.whole:
        faults = found.faults()
    else:  # the components that are here, without what goes with them
        faults = [*found.problems, *(f for part in found.parts.values() for f in part.faults), *found.misfits()]
    rounding = found.rounded(None)
    parts = {name: _describe(part, rounding.of(name)) for name, part in found.parts.items()}
    return {
        "source": found.name,
        "path": str(found.path),
        "layout": found.layout if found.parts else None,
        "pipeline": found.whole,
        "variant": found.variant.name if "transformer" in found.parts else None,
        "loads": not faults,
        "parameters": sum(part["parameters"] for part in parts.values()),
        "bytes": sum(part["bytes"] for part in parts.values()),
        "components": parts,
        "absent": found.absent(),
        "problems": [*found.problems, *found.misfits()],
        "scheduler": dataclasses.asdict(found.config.scheduler) if found.whole else None,
        "settings": dataclasses.asdict(settings_of(found)) if found.whole else None,
        "tokenizers": {name: str(path) for name, path in found.tokenizers.items()},
    }


def _describe(part: Part, weights: Weights | None) -> dict[str, Any]:
    return {
        "path": str(part.path),
        "layout": part.layout,
        "prefix": part.prefix,
        "dtypes": dict(Counter(tensor.dtype for tensor in part.tensors.values())),
        "tensors": len(part.tensors),
        "bytes": sum(tensor.size for tensor in part.stored_tensors),
        "parameters": part.parameters or sum(math.prod(tensor.shape) for tensor in part.tensors.values()),
        "weights": weights,
        "becomes": dict(part.becomes(weights)),
        "memory_bytes": part.memory(weights, 2),
        "unused": part.scales.unused,
        "config": None if part.config is None else dataclasses.asdict(part.config),
        "missing": [part.prefix + key for key in part.missing],
        "extra": [part.tensors[key].key for key in part.extra],
        "misshaped": part.misshaped,
        "problems": part.damage,
    }


def format_info(content: dict[str, Any]) -> str:
    """The dictionary of `info` as a table and a list of faults."""
    kind = "pipeline" if content["pipeline"] else "no whole pipeline"
    variant = VARIANTS[content["variant"] or "text"]
    title = "" if variant.reads == "nothing" else f"{variant.title}, "
    lines = [f"{content['source']}: {title}{content['layout']} layout, {kind}", ""]
    rows = [("component", "layout", "types", "tensors", "parameters", "size")]
    for name, part in content["components"].items():
        types = " ".join(part["dtypes"]) or "-"
        numbers = (f"{part['tensors']:,}", f"{part['parameters']:,}", _bytes(part["bytes"]))
        rows.append((name, part["layout"], types, *numbers))
    rows.append(("all", "", "", "", f"{content['parameters']:,}", _bytes(content["bytes"])))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    lines += ["", *_eight_bits(content["components"])]
    named = [*content["components"].items(), ("scheduler", content), ("settings", content)]
    for name, part in named:
        values = part.get("config") if name in content["components"] else part[name]
        if values:
            lines.append(f"{name}: " + ", ".join(f"{key} {_value(value)}" for key, value in values.items()))
    lines += ["", *_faults(content), "loads" if content["loads"] else "does NOT load"]
    return "\n".join(map(printable, lines))


def _eight_bits(components: dict[str, dict[str, Any]]) -> list[str]:
    """What becomes of weights of eight bits and fewer, and what they take in memory."""
    lines = []
    for name, part in components.items():
        if not part["becomes"]:
            continue
        into = {"kept": f"in {part['weights']}", "rounded": f"to {part['weights']}", "widened": "to --dtype"}
        done = [f"{part['becomes'][what]} {what} {to}" for what, to in into.items() if what in part["becomes"]]
        memory = f"{_bytes(part['memory_bytes'])} in memory, all else in bfloat16"
        lines.append(f"{name}: tensors of few bits: {', '.join(done)} (--weights says otherwise); {memory}")
    for name, part in components.items():
        if part["unused"]:
            kinds = sorted({key.rpartition(".")[2] for key in part["unused"]})
            lines.append(f"{name}: {len(part['unused'])} tensors without use here: {', '.join(kinds)}")
    return [*lines, ""] if lines else []


def _faults(content: dict[str, Any]) -> list[str]:
    lines = []
    if content["absent"]:
        lines.append(f"not here: {', '.join(content['absent'])}" + ("" if content["pipeline"] else " (--components)"))
    lines += [f"problem: {line}" for line in content["problems"]]
    for name, part in content["components"].items():
        lines += [f"{name}: problem: {line}" for line in part["problems"]]
        for kind in ("missing", "extra", "misshaped"):
            if part[kind]:
                lines.append(f"{name}: {len(part[kind])} {kind}:")
                lines += [f"    {line}" for line in part[kind]]
    return lines


def _bytes(count: int) -> str:
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.1f} {unit}" if unit != "B" else f"{count} B"


def _value(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
