"""Weights of eight bits in other people's files: which tensors are their scales, and which nobody needs.

    X.weight  F8_E4M3, F8_E5M2       a cast, where there is no scale; else weight * scale
    X.weight  I8                     weight * scale
    X.scale_weight, X.weight_scale   the scale: one number, or one for each output

The first name is that of Comfy's older files, which a tensor `scaled_fp8` marks, the second that of the newer, whose
`X.comfy_quant` (or a table in the metadata) names a layer's format, and of the original release's. Scales of a layer's
input belong to products of eight bits and change no weight. Weights in other packings are refused by name.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from jaxpa.checkpoint.documents import parse
from jaxpa.checkpoint.files import DTYPES, EIGHT_BITS, Tensor

SCALE = re.compile(r"(.*)\.(scale_weight|weight_scale)")
# Known, and not used: scales of inputs, markers, and what text encoders are stored with.
UNUSED = re.compile(
    r"(.*\.)?(scale_input|input_scale|scaled_fp8|comfy_quant|spiece_model|logit_scale|text_projection\.weight)"
)
LONGEST = 4096  # bytes of a format
FORMATS = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "int8_tensorwise": "I8"}
INSTEAD = "use the fp8, the GGUF or the original file of this model"

# Packings of other programs, by what only their keys have.
PACKINGS = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"\.quant_state\.bitsandbytes__(nf4|fp4)$|\.weight\.(absmax|quant_map)$", "NF4 of bitsandbytes"),
        (r"\.(SCB|weight_format)$", "LLM.int8 of bitsandbytes"),
        (r"\.(wscales|wcscales|smooth_factor|smooth_factor_orig)$", "SVDQuant of Nunchaku"),
        (r"\.(weight_scale_2|pre_quant_scale)$", "NVFP4"),
        (r"\.(qzeros|g_idx|qweight)$", "GPTQ or AWQ"),
        (r"\.weight\._(data|scale|shift)$", "quanto"),
    )
)


@dataclass
class Scales:
    """What stands beside a component's weights.

    of: the name of a weight -> its scale; unused: names that are known and left out; problems: a line each.
    """

    of: dict[str, Tensor] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def take_scales(
    tensors: dict[str, Tensor], metadata: dict[str, str], prefix: str = ""
) -> tuple[dict[str, Tensor], Scales]:
    """A component's tensors without what belongs to weights of eight bits, and this.

    prefix: what stood before the tensors' names in the file.
    """
    found = Scales()
    weights: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if match := SCALE.fullmatch(key):
            if (weight := f"{match[1]}.weight") in found.of:
                found.problems.append(f"{tensor.file}: '{tensor.key}' is a second scale of the same weight")
            found.of[weight] = tensor
        elif UNUSED.fullmatch(key):
            found.unused.append(key)
        else:
            weights[key] = tensor
    found.problems += [fault for key, scale in found.of.items() if (fault := _fault(weights.get(key), scale))]
    found.problems += _formats(tensors, weights)
    found.problems += _table(metadata.get("_quantization_metadata"), weights, prefix)
    return weights, found


def packing_fault(tensors: dict[str, Tensor]) -> str | None:
    """The fault of a file whose weights are packed in a way that is not read; None: they are not."""
    for pattern, name in PACKINGS:
        if key := next((key for key in tensors if pattern.search(key)), None):
            return f"{tensors[key].file}: its weights are packed by {name} ('{key}'), which is not read: {INSTEAD}"
    return None


def _fault(weight: Tensor | None, scale: Tensor) -> str | None:
    """What is wrong with a scale, as far as headers tell."""
    where = f"{scale.file}: the scale '{scale.key}'"
    if weight is None:
        return f"{where} belongs to no weight of the file"
    if weight.dtype not in EIGHT_BITS:
        return f"{where} belongs to a weight of {weight.dtype}, not of eight bits"
    if scale.dtype not in DTYPES:
        return f"{where} has the type {scale.dtype}, which is not supported ({', '.join(DTYPES)} are)"
    rows = weight.shape[:1]
    if scale.shape not in ((), (1,), (1, 1), rows, (*rows, 1)) or len(weight.shape) < 2:
        count = "" if not rows else f" for the {rows[0]:,} outputs of a weight {list(weight.shape)}"
        return f"{where} is {list(scale.shape)}, neither one number nor one an output{count}"
    return None


def _formats(tensors: dict[str, Tensor], weights: dict[str, Tensor]) -> list[str]:
    """Faults of the formats that stand beside layers, as JSON in tensors."""
    faults = []
    for key, tensor in tensors.items():
        if not key.endswith(".comfy_quant"):
            continue
        try:
            if tensor.size > LONGEST:
                raise ValueError(f"it is longer than {LONGEST} bytes")
            said = parse(tensor.bytes().tobytes())
        except (ValueError, OSError) as error:
            faults.append(f"{tensor.file}: '{tensor.key}' says no format: {error}")
            continue
        weight = weights.get(f"{key.removesuffix('.comfy_quant')}.weight")
        if fault := _format(said, weight):
            faults.append(f"{tensor.file}: '{tensor.key}' {fault}")
    return faults


def _table(text: str | None, weights: dict[str, Tensor], prefix: str) -> list[str]:
    """Faults of the formats that stand in the header, for all layers of the file."""
    if text is None:
        return []
    try:
        layers = parse(text).get("layers", {})
    except ValueError as error:
        return [f"_quantization_metadata in the header: {error}"]
    faults = []
    for module, said in layers.items() if isinstance(layers, dict) else ():
        weight = weights.get(f"{module.removeprefix(prefix)}.weight")
        if weight is not None and (fault := _format(said, weight)):
            faults.append(f"{weight.file}: layer '{module}' {fault}")
    return faults


def _format(said: Any, weight: Tensor | None) -> str | None:
    """What is wrong with a layer's format: {"format": "float8_e4m3fn"}."""
    more: Any = said.get("params", {}) if isinstance(said, dict) else {}
    name = said.get("format") if isinstance(said, dict) else said
    if isinstance(said, dict) and (said.get("convrot") or (isinstance(more, dict) and more.get("convrot"))):
        return f"has rotated weights (convrot), which are not read: {INSTEAD}"
    if not isinstance(name, str) or name not in FORMATS:
        return f"names the format {str(name)!r:.40}, which is not read ({', '.join(FORMATS)} are): {INSTEAD}"
    if weight is None:
        return "belongs to no weight of the file"
    if weight.dtype in EIGHT_BITS and weight.dtype != FORMATS[name]:
        return f"names the format {name}, but the weight is {weight.dtype}"
    return None
