"""One LoRA's file against a checkpoint's configuration: what it changes, and every fault, from its header.

A change is low-rank products and whole matrices (of layers), shifts (of biases) and replaced norms (control LoRAs of
the original release). Numbers are read, and must be finite, when the change is made: only the scalars `.alpha` are read
here.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxpa.adapters.names import CONTROL, XLABS, Names, Parameters, Place, names_of, of_xlabs, other_kind, read_key
from jaxpa.backbones.registry import backbone_of
from jaxpa.checkpoint.documents import parse, read_json
from jaxpa.checkpoint.files import DTYPES, PICKLES, Tensor, finite, read_header
from jaxpa.config import FluxConfig
from jaxpa.errors import CheckpointError, JaxpaError, flag, quoted, real

METADATA = "lora_adapter_metadata"  # of a file's header: PEFT's configuration as JSON, each key behind its network's


class Product(NamedTuple):
    """up (Out, R) down (R, In), times `factor` (alpha / rank), added to a stored layer that holds `parameters`."""

    component: str
    parameters: Parameters
    down: Tensor
    up: Tensor
    factor: float
    alpha: float | None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def inputs(self) -> int:
        return self.down.shape[1]


class Vector(NamedTuple):
    """`factor` times a tensor, added to biases, or to a matrix of their layer that is changed as a whole.

    replaces: put in place of norms' scales, whatever the LoRA's.
    """

    component: str
    parameters: Parameters
    tensor: Tensor
    factor: float = 1.0
    replaces: bool = False

    @property
    def whole(self) -> bool:
        """Whether it is the change of a matrix."""
        return self.parameters[0][0].path.endswith(".kernel")


@dataclass
class Adapter:
    """A file as far as its header describes it. `unused`: keys that no layer has; `idle`: such that are all zero."""

    file: Path
    tensors: dict[str, Tensor] = field(default_factory=dict)
    formats: list[str] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    vectors: list[Vector] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """Everything that keeps it from being used."""
        return [*self.problems, *(f"{self.file}: '{key}' belongs to no layer of this model" for key in self.unused)]


class Module(NamedTuple):
    """The keys of a file that are about one layer, by role."""

    place: Place
    name: str  # as it stands in the file
    keys: dict[str, str]


def open_adapter(file: str | Path, config: FluxConfig) -> Adapter:
    """Read a file's header against a checkpoint's configuration. Raises CheckpointError where it is no LoRA at all."""
    path = Path(file).expanduser()
    if path.name.endswith(PICKLES):
        raise CheckpointError(f"{path} is a pickle, which can run code and is never read; use a .safetensors file")
    try:
        tensors, metadata, problems = read_header(path)
    except (OSError, ValueError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CheckpointError(f"{path}: {reason}") from None
    adapter = Adapter(path, tensors, problems=problems)
    if kinds := dict.fromkeys(kind for key in tensors if (kind := other_kind(key))):
        raise CheckpointError(f"{path}: this is {' and '.join(kinds)}, which is not read; only LoRA is")
    if not is_lora(tensors):
        raise CheckpointError(f"{path}: not a LoRA: none of its {len(tensors):,} tensors has the name of one's")
    _Reader(adapter, config, _peft(adapter, metadata)).read()
    return adapter


def is_lora(keys: Any) -> bool:
    """Whether a file with these keys is an adapter, of LoRA or of another kind."""
    return any(other_kind(key) or read_key(key).role in ("down", "up", "whole") for key in keys)


def _peft(adapter: Adapter, metadata: dict[str, str]) -> dict[str, Any]:
    """PEFT's configuration: from the header, where diffusers writes it, or from the file that PEFT writes beside."""
    beside = adapter.file.with_name("adapter_config.json")
    try:
        if METADATA in metadata:
            said = parse(metadata[METADATA])
        elif adapter.file.name == "adapter_model.safetensors" and beside.exists():
            said = {f"transformer.{key}": value for key, value in read_json(beside).items()}
        else:
            return {}
        for key, value in said.items():
            if key.endswith((".use_dora", ".use_rslora")) and value is not None:
                flag(key, value)
        return said
    except (ValueError, JaxpaError) as error:
        adapter.problems.append(f"{adapter.file}: PEFT's configuration is damaged: {error}")
    return {}


@dataclass
class _Reader:
    """Sorts an adapter's keys: each fills a list of the adapter."""

    adapter: Adapter
    config: FluxConfig
    peft: dict[str, Any]
    taken: dict[tuple[str, str, int], str] = field(default_factory=dict)  # parameters, by the module that changes them

    def read(self) -> None:
        adapter = self.adapter
        if any(value for key, value in self.peft.items() if key.endswith(".use_dora")):
            raise CheckpointError(f"{adapter.file}: this is DoRA, which is not read; only LoRA is")
        for module in self.modules():
            names = names_of(self.config, module.place.prefix.component)
            if module.place.role is None:
                self.norm(module, names)
                continue
            parameters = layer(module.place, names)
            if not parameters:
                self.leave(module)
                continue
            self.take(module, parameters)
            self.layer(module, names, parameters)
        adapter.formats = list(dict.fromkeys(adapter.formats))

    def take(self, module: Module, parameters: Parameters) -> None:
        """Note what a module changes, and the fault if another one does so already."""
        for leaf, block in parameters:
            place = module.place.prefix.component, leaf.path, block
            if (first := self.taken.setdefault(place, module.name)) != module.name:
                self.fault(f"'{module.name}' and '{first}' change one layer: one of them is left over")
                return

    def fault(self, text: str) -> None:
        self.adapter.problems.append(f"{self.adapter.file}: {text}")

    def modules(self) -> Iterator[Module]:
        """The file's keys, those about one layer together, in the file's order."""
        found: dict[tuple[bool, str], Module] = {}
        for key in self.adapter.tensors:
            place = read_key(key)
            name = place.prefix.text + place.module
            known = found.setdefault((place.role is None, name), Module(place, name, {}))
            if place.role in known.keys:
                self.fault(f"'{key}' and '{known.keys[place.role]}' mean the same")
            known.keys[place.role or ""] = key
        yield from found.values()

    def leave(self, module: Module) -> None:
        """What belongs nowhere. Trainers also write what they have not trained: zeros, which are none of ours."""
        changes = [
            self.adapter.tensors[key] for role, key in module.keys.items() if role in ("up", "shift", "bias", "whole")
        ]
        zero = bool(changes) and all(t.dtype in DTYPES and not t.read().any() for t in changes)
        (self.adapter.idle if zero else self.adapter.unused).extend(module.keys.values())

    def norm(self, module: Module, names: Names) -> None:
        """A parameter under its own name: the scale of a norm, or nothing."""
        (key,) = module.keys.values()
        tensor, parameters = self.adapter.tensors[key], names.vectors.get(key.removeprefix(module.place.prefix.text))
        if not parameters or not parameters[0][0].path.endswith(".scale"):
            self.leave(module)
        elif self.sound(tensor, parameters[0][0].block_shape):
            self.take(module, parameters)
            self.adapter.vectors.append(Vector(module.place.prefix.component, parameters, tensor, replaces=True))
            self.adapter.formats.append(CONTROL)

    def layer(self, module: Module, names: Names, parameters: Parameters) -> None:
        """The product of one layer, and what is added to its bias."""
        tensors = {role: self.adapter.tensors[key] for role, key in module.keys.items()}
        component = module.place.prefix.component
        known, named = module.place.prefix.format, of_xlabs(module.place.module) is not None
        self.adapter.formats.append(XLABS if named else "original names" if known == "bare" else known)
        if "shift" in tensors:
            self.bias(component, names, parameters, tensors["shift"], 1.0)
        if "whole" in tensors and self.known(tensors["whole"]):
            outputs, inputs = _size_of(parameters)
            if matrix(tensors["whole"]) == (outputs, inputs):
                self.adapter.vectors.append(Vector(component, parameters, tensors["whole"]))
            else:
                said = f"'{tensors['whole'].key}' {list(tensors['whole'].shape)}"
                self.fault(f"{said} is no change of a layer of {inputs} inputs and {outputs} outputs")
        if tensors.keys() <= {"shift", "whole"}:
            return
        if missing := [role for role in ("down", "up") if role not in tensors]:
            self.fault(f"'{module.name}' lacks its {' and its '.join(missing)} matrix")
            return
        down, up = tensors["down"], tensors["up"]
        if not self.fits(parameters, down, up):
            return
        alpha = self.alpha(module, tensors.get("alpha"))
        rank = math.sqrt(down.shape[0]) if self.peft.get(f"{component}.use_rslora") else down.shape[0]
        factor = 1.0 if alpha is None else alpha / rank
        self.adapter.products.append(Product(component, parameters, down, up, factor, alpha))
        if "bias" in tensors:
            self.bias(component, names, parameters, tensors["bias"], factor)

    def fits(self, parameters: Parameters, down: Tensor, up: Tensor) -> bool:
        """Whether two matrices are those of a change of a layer; notes it where they are not."""
        outputs, inputs = _size_of(parameters)
        if False in [self.known(tensor) for tensor in (down, up)]:
            return False
        (rank, ins), (outs, ranks) = matrix(down), matrix(up)
        if 0 < rank == ranks <= max(outputs, ins) and outs == outputs and (ins == inputs or self.widens(parameters)):
            return ins > 0
        self.fault(
            f"'{down.key}' {list(down.shape)} and '{up.key}' {list(up.shape)} are no change of a layer of {inputs} "
            f"inputs and {outputs} outputs: it takes [rank, {inputs}] and [{outputs}, rank]"
        )
        return False

    def widens(self, parameters: Parameters) -> bool:
        """Whether the layer is the one that reads the image tokens, to which a LoRA may add channels."""
        first = backbone_of(self.config.transformer).channels_in
        return first is not None and parameters[0][0].path == f"{first}.kernel"

    def bias(self, component: str, names: Names, parameters: Parameters, tensor: Tensor, factor: float) -> None:
        """A change of the bias of the layer that holds these parameters."""
        keys = {
            f"{source.removesuffix('.weight')}.bias" for leaf, block in parameters for source in [leaf.sources[block]]
        }
        (key,) = keys
        held = names.vectors.get(key)
        if held is None:
            self.adapter.unused.append(tensor.key)
        elif self.sound(tensor, held[0][0].whole_shape):
            self.adapter.vectors.append(Vector(component, held, tensor, factor))

    def known(self, tensor: Tensor) -> bool:
        """Whether a tensor's type is read; notes it where it is not."""
        if tensor.dtype not in DTYPES:
            known = ", ".join(DTYPES)
            self.fault(f"'{tensor.key}' has the type {tensor.dtype}, which is not supported ({known} are)")
        return tensor.dtype in DTYPES

    def sound(self, tensor: Tensor, shape: tuple[int, ...]) -> bool:
        """The same of type and shape."""
        if self.known(tensor) and tensor.shape != shape:
            self.fault(f"'{tensor.key}' is {list(tensor.shape)}, not {list(shape)}")
        return tensor.dtype in DTYPES and tensor.shape == shape

    def alpha(self, module: Module, tensor: Tensor | None) -> float | None:
        """A layer's alpha: its own tensor, or what the header says; None: nothing does, and alpha is the rank."""
        said = _peft_alpha(self.peft, module.place)
        if isinstance(said, str):
            self.fault(f"PEFT's configuration: {said}")
            return None
        if tensor is None:
            return said
        if said is not None:
            self.fault(f"'{tensor.key}' says alpha, and so does PEFT's configuration: leave one out")
        value = tensor.read() if tensor.dtype in DTYPES and math.prod(tensor.shape) == 1 else np.array([np.nan])
        if not finite(value) or tensor.dtype not in DTYPES:
            self.fault(f"'{tensor.key}' {tensor.dtype} {list(tensor.shape)} is no finite number")
            return None
        return float(value.reshape(-1)[0])


def _peft_alpha(peft: dict[str, Any], place: Place) -> float | str | None:
    """What PEFT's configuration says of a layer's alpha; a string: what is wrong with it. None: nothing.

    Its patterns are regular expressions to PEFT; what is written are the ends of names, and only such are read.
    """
    component = place.prefix.component
    if (alpha := peft.get(f"{component}.lora_alpha")) is None:
        return None
    patterns = peft.get(f"{component}.alpha_pattern") or {}
    if not isinstance(patterns, dict):
        return f"alpha_pattern is {quoted(patterns, 40)}, not an object"
    for pattern, value in patterns.items():
        name = pattern.removeprefix("^")
        if set(name) & set("*+?()[]{}|\\$"):
            return f"alpha_pattern has the expression {pattern!r:.80}: only ends of names are read"
        if place.module == name or (name == pattern and place.module.endswith(f".{name}")):
            alpha = value
            break
    try:
        return real("alpha", alpha)
    except JaxpaError as error:
        return str(error)


def layer(place: Place, names: Names) -> Parameters:
    """The parameters that a module of a file is about; (): none."""
    if xlabs := of_xlabs(place.module):
        name, within = xlabs
        return tuple(each for each in names.kernels.get(name, ()) if within in each[0].path)
    name = names.joined.get(place.module, "") if place.prefix.joined else place.module
    return names.kernels.get(name, ())


def _size_of(parameters: Parameters) -> tuple[int, int]:
    """Outputs and inputs of a stored layer, or of those of its outputs that are these parameters."""
    shapes = [leaf.block_shape for leaf, _ in parameters]
    if parameters[0][0].part.inputs:
        return shapes[0][-1], sum(shape[-2] for shape in shapes)
    return sum(shape[-1] for shape in shapes), shapes[0][-2]


def matrix(tensor: Tensor) -> tuple[int, int]:
    """A tensor's shape as a matrix; a 1 x 1 convolution is one. (0, 0): it is none."""
    shape = tensor.shape
    return (shape[0], shape[1]) if len(shape) in (2, 4) and shape[2:] in ((), (1, 1)) else (0, 0)
