"""What `jaxpa info` says about a LoRA's file, from its header alone."""

from collections import Counter
from pathlib import Path
from typing import Any

from jaxpa.adapters.lay import Adapters
from jaxpa.adapters.read import Adapter, is_lora, open_adapter
from jaxpa.adapters.spec import Lora
from jaxpa.checkpoint.files import read_header
from jaxpa.checkpoint.fit import mismatches
from jaxpa.checkpoint.source import described, resolve
from jaxpa.config import FluxConfig
from jaxpa.errors import printable

CANDIDATES = ("FLUX.1-dev", "mini")  # what a LoRA is compared with if nobody says


def is_adapter(source: str | Path) -> bool:
    """Whether a source is the file of an adapter, of LoRA or of another kind."""
    path = Path(source).expanduser()
    try:
        return path.suffix == ".safetensors" and path.is_file() and is_lora(read_header(path)[0])
    except (OSError, ValueError, RuntimeError):
        return False


def info_adapter(file: str | Path, model: str | None = None) -> dict[str, Any]:
    """Format, ranks, what is changed, and every fault of a LoRA, as JSON takes it.

    model: the checkpoint that it is for (None: FLUX.1-dev or mini, whichever has more of its layers). Nothing is
    downloaded. Raises CheckpointError where the file is no LoRA.
    """
    found = {name: open_adapter(file, _config(name)) for name in ([model] if model else CANDIDATES)}
    name = min(found, key=lambda each: len(found[each].faults))  # the first of equal ones
    return _describe(found[name], name, _config(name))


def _config(name: str) -> FluxConfig:
    return described("dev").config if name == CANDIDATES[0] else resolve(name, download=False).config


def _describe(adapter: Adapter, model: str, config: FluxConfig) -> dict[str, Any]:
    laid = Adapters(config, (Lora(str(adapter.file)),), (adapter,), keep=True)
    widened = laid.config.transformer.in_channels
    faults = [*adapter.faults]
    if widened != config.transformer.in_channels:
        faults += mismatches({"transformer": laid.config.transformer, "vae": config.vae})
    touched: dict[str, Counter[str]] = {}
    for component, paths in laid.parts.items():
        for path, parts in paths.items():
            blocks = {part.block for part in parts}
            touched.setdefault(component, Counter())[path] = len(blocks)
    return {
        "source": str(adapter.file),
        "kind": "lora",
        "formats": adapter.formats,
        "model": model,
        "loads": not faults,
        "ranks": sorted({product.rank for product in adapter.products}),
        "alphas": sorted({product.alpha for product in adapter.products if product.alpha is not None}),
        "tensors": len(adapter.tensors),
        "dtypes": dict(Counter(tensor.dtype for tensor in adapter.tensors.values())),
        "bytes": sum(tensor.size for tensor in adapter.tensors.values()),
        "changes": {component: dict(paths) for component, paths in touched.items()},
        "replaces": sorted({leaf.path for each in adapter.vectors if each.replaces for leaf, _ in each.parameters}),
        "in_channels": widened if widened != config.transformer.in_channels else None,
        "kept_numbers": laid.kept,
        "merged_only": [change.tensor.key for change in adapter.vectors if change.whole],
        "unused": adapter.unused,
        "idle": adapter.idle,
        "problems": [*adapter.problems, *faults[len(adapter.faults) :]],
    }


def format_adapter(content: dict[str, Any]) -> str:
    """The dictionary of `info_adapter` as a table and a list of faults."""
    c = content
    alphas = ", ".join(f"{alpha:g}" for alpha in c["alphas"]) or "none: the rank"
    lines = [
        f"{c['source']}: a LoRA of the format {' and '.join(c['formats']) or 'of no known layer'}, for {c['model']}",
        f"rank {', '.join(map(str, c['ranks'])) or 'none'}; alpha {alphas}; {c['tensors']:,} tensors of "
        f"{' '.join(c['dtypes'])}, {c['bytes'] / 2**20:.1f} MiB",
        "",
    ]
    for component, paths in c["changes"].items():
        lines.append(f"{component}:")
        lines += [f"    {path}" + (f", {count} blocks" if count > 1 else "") for path, count in paths.items()]
    if c["replaces"]:
        lines.append(f"puts its own in place of: {', '.join(c['replaces'])}")
    if c["merged_only"]:
        lines.append(f"{len(c['merged_only'])} matrices change as a whole: it can be merged only (--keep-lora no)")
    if c["in_channels"]:
        lines.append(f"widens the transformer's input to {c['in_channels']} channels")
    if c["idle"]:
        lines.append(f"{len(c['idle'])} keys of layers that are not here, all zero: nothing is lost without them")
    if c["unused"]:
        lines.append(f"{len(c['unused'])} keys that would not be used:")
        lines += [f"    {key}" for key in c["unused"]]
    lines += [f"problem: {line}" for line in c["problems"]]
    lines += ["", "loads" if c["loads"] else "does NOT load"]
    return "\n".join(map(printable, lines))
