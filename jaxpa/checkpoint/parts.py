"""One component of a checkpoint as its headers describe it: configuration, names, shapes, and every fault.

A component is a folder with a config.json (diffusers', or a converted one), or it lies in a single file
(`checkpoint.single`).

Its numbers may have eight bits or fewer in the files. Those of kernels that may have eight bits in memory
(`Component.rounded`) are *kept* if their type is the wanted one, or *rounded* to it; all others are *widened*.
"""

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxpa.checkpoint.documents import read_json
from jaxpa.checkpoint.files import DTYPES, EIGHT_BITS, Files, Tensor, read_folder
from jaxpa.checkpoint.gguf import NEEDS, PACKED, can_unpack
from jaxpa.checkpoint.keys import COMPONENTS, KNOWN, Component, Config, Layout, Leaf, canonical, component, leaves
from jaxpa.checkpoint.scales import Scales, packing_fault, take_scales
from jaxpa.config import Weights
from jaxpa.quantised import DTYPES as ROUNDED

PARTS = tuple(COMPONENTS)

STORED_AS: dict[str, Weights] = {"I8": "int8", "F8_E4M3": "fp8", "F8_E5M2": "fp8"}
FROM_PACKED: Weights = "int8"  # what blocks of few bits become unless told otherwise: the more accurate kind


def scale_of(leaf: Leaf) -> str:
    """The tensor that holds the scales of a parameter of eight bits: float32, one for each output."""
    return f"{leaf.path}.scale"


@dataclass(frozen=True)
class Part:
    """One component as its headers describe it; `tensors` by the names of the tables, whatever the file's prefix."""

    name: str
    path: Path
    layout: Layout
    files: Files
    config: Config | None = None
    json: dict[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()  # of the configuration
    prefix: str = ""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    scales: Scales = field(default_factory=Scales)  # of another program's file

    @cached_property
    def leaves(self) -> list[Leaf]:
        return [] if self.config is None else leaves(self.name, self.config, self.layout)

    @cached_property
    def expected(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """Every tensor that the configuration asks for, with the shapes that will do."""
        found = {key: shapes for leaf in self.leaves for key, shapes in leaf.expected().items()}
        rounded = (leaf for leaf in self.leaves if self.in_eight_bits(leaf))
        return found | {scale_of(leaf): ((*leaf.shape[:-2], leaf.shape[-1]),) for leaf in rounded}

    @property
    def stored_tensors(self) -> tuple[Tensor, ...]:
        """All that its files hold of it: the tensors, and the scales of those of eight bits."""
        return *self.tensors.values(), *self.scales.of.values()

    def rounds(self, leaf: Leaf) -> bool:
        """Whether a parameter may have eight bits in memory."""
        return self.config is not None and component(self.name, self.config).rounds(leaf.path)

    def in_eight_bits(self, leaf: Leaf) -> bool:
        """Whether a parameter is stored as a `Quantised`, in a folder that `convert` wrote."""
        if self.layout != "jaxpa" or not self.rounds(leaf):
            return False
        return leaf.sources[0] in self.tensors and self.tensors[leaf.sources[0]].dtype in EIGHT_BITS

    def readable(self, key: str) -> bool:
        """Whether a tensor's type is one of numbers, in another program's file with its scale if it needs one."""
        dtype = self.tensors[key].dtype
        if dtype in DTYPES or dtype in PACKED or self.layout == "jaxpa":
            return dtype in DTYPES or dtype in PACKED
        return dtype in EIGHT_BITS and (dtype != "I8" or key in self.scales.of)

    def types(self, leaf: Leaf) -> set[str]:
        """The types of a parameter's sources."""
        return {self.tensors[key].dtype for key in leaf.sources if key in self.tensors}

    def held_as(self, leaf: Leaf, weights: Weights) -> np.dtype:
        """The type in memory of a parameter whose blocks shall be `weights`.

        It is the one that is rounded to, but where the file has all of its blocks in another one of this kind.
        """
        types = self.types(leaf)
        only = next(iter(types)) if len(types) == 1 else None
        return EIGHT_BITS[only] if only and STORED_AS.get(only) == weights else ROUNDED[weights]

    def keeps(self, leaf: Leaf, index: int, dtype: np.dtype) -> bool:
        """Whether a source stays as it is in a parameter of this type of eight bits."""
        return EIGHT_BITS.get(self.tensors[leaf.sources[index]].dtype) == dtype

    def scale(self, leaf: Leaf, index: int) -> Tensor | None:
        """The tensor of scales that a source is to be multiplied by."""
        return self.tensors[scale_of(leaf)] if self.in_eight_bits(leaf) else self.scales.of.get(leaf.sources[index])

    @cached_property
    def stored(self) -> Weights | None:
        """The kind of eight bits that most of the kernels that may have them are stored in; None: most have more."""
        return STORED_AS.get(self._usual)

    @cached_property
    def weights(self) -> Weights | None:
        """Of how many bits its blocks are in memory unless told otherwise; None: of as many as the rest."""
        return FROM_PACKED if self._usual in PACKED else self.stored

    @property
    def _usual(self) -> str:
        """The type that most of the kernels that may have eight bits are stored in; types of blocks are one."""
        found: Counter[str] = Counter()
        for leaf in filter(self.rounds, self.leaves):
            types = [self.tensors[key].dtype for key in leaf.sources if key in self.tensors]
            found.update(next(iter(PACKED)) if dtype in PACKED else dtype for dtype in types)
        return found.most_common(1)[0][0] if found else ""

    def becomes(self, weights: Weights | None) -> Counter[str]:
        """How many stored weight matrices are "kept", "rounded" and "widened"; others are read as they are."""
        found: dict[str, str] = {}
        for leaf in self.leaves:
            dtype = self.held_as(leaf, weights) if weights is not None and self.rounds(leaf) else None
            for index, key in enumerate(leaf.sources):
                if key not in self.tensors:
                    continue
                if dtype is not None:
                    found[key] = "kept" if self.keeps(leaf, index, dtype) else "rounded"
                elif self.tensors[key].dtype not in DTYPES:
                    found[key] = "widened"
        return Counter(found.values())

    def memory(self, weights: Weights | None, itemsize: int) -> int:
        """Bytes in memory: of eight bits with a scale an output, else `itemsize` a number."""
        eights = [leaf for leaf in self.leaves if weights is not None and self.rounds(leaf)]
        outputs = sum(leaf.size // leaf.shape[-2] for leaf in eights)
        count = sum(leaf.size for leaf in eights)
        return (self.parameters - count) * itemsize + count + 4 * outputs

    @property
    def parameters(self) -> int:
        return sum(leaf.size for leaf in self.leaves)

    @property
    def missing(self) -> list[str]:
        """Names of the tables that no file has; those that a lost shard would have held are not counted again."""
        unknown = self.files.unknown
        if unknown is None:
            return []
        known = self.tensors.keys() | canonical(self.name, list(unknown)).keys()
        return [key for key in self.expected if key not in known]

    @property
    def extra(self) -> list[str]:
        return [] if self.config is None else [key for key in self.tensors if key not in self.expected]

    @property
    def misshaped(self) -> list[str]:
        """Lines that name file, tensor, and both shapes."""
        return [
            f"{self.tensors[key].file}: tensor '{self.tensors[key].key}' is {list(self.tensors[key].shape)}, "
            f"the configuration asks for {list(shapes[0])}"
            for key, shapes in self.expected.items()
            if key in self.tensors and self.tensors[key].shape not in shapes
        ]

    @property
    def damage(self) -> list[str]:
        """Faults of the files and of the configuration: lines that name them."""
        rounded = {leaf.sources[0] for leaf in self.leaves if self.in_eight_bits(leaf)}
        rounded -= {leaf.sources[0] for leaf in self.leaves if not self.in_eight_bits(leaf)}
        types = [
            f"{t.file}: tensor '{t.key}' has the type {t.dtype}, which is not supported ({', '.join(DTYPES)} are)"
            for key, t in self.tensors.items()
            if key in self.expected and key not in rounded and not self.readable(key)
        ]
        if not can_unpack() and any(t.dtype in PACKED for t in self.tensors.values()):
            types.append(f"{self.path}: {NEEDS}")
        return [*self.problems, *self.files.problems, *self.scales.problems, *types]

    @property
    def faults(self) -> list[str]:
        """Everything that keeps it from loading, as far as headers tell; [] if nothing does."""
        missing = [
            f"{self.path}: tensor '{self.prefix}{key}' {list(self.expected[key][0])} is missing" for key in self.missing
        ]
        extra = [f"{self.tensors[key].file}: tensor '{self.tensors[key].key}' belongs nowhere" for key in self.extra]
        return [*self.damage, *missing, *extra, *self.misshaped]


def open_folder(folder: Path, name: str | None = None) -> Part:
    """The component in a folder; `name` where the place of the folder says which one it must be."""
    files = read_folder(folder)
    layout: Layout = "jaxpa" if files.metadata.get("format") == "jaxpa" else "diffusers"
    try:
        json = read_json(folder / "config.json")
    except ValueError as error:
        return Part(name or "unknown", folder, layout, files, problems=(str(error),))
    classes = class_names(json)
    found, kind = component_of(json) or (None, None)
    if found is None or kind is None or (name is not None and found != name):
        parts = (name,) if name else PARTS
        wanted = [c for part in parts for each in KNOWN[part].values() for c in each.class_names]
        fault = f"{folder / 'config.json'}: the class is {' '.join(classes) or 'not given'}, not {' or '.join(wanted)}"
        return Part(name or "unknown", folder, layout, files, json=json, problems=(fault,))
    names = canonical(found, list(files.tensors))
    tensors, scales = {key: files.tensors[actual] for key, actual in names.items()}, Scales()
    if layout == "diffusers":
        if packing := packing_fault(tensors):
            return Part(found, folder, layout, files, json=json, problems=(packing,))
        tensors, scales = take_scales(tensors, files.metadata)
    fronts = ("text_model.", "vision_model.")
    prefix = next((front for front in fronts if any(key.startswith(front) for key in files.tensors)), "")
    try:
        config, problems = kind.config.from_json(json), ()
        if files.unknown is not None:
            _check_counts(config, len(tensors) + len(files.unknown))
        leaves(found, config, layout)  # a configuration that no network can be built from fails here
    except (ValueError, TypeError, ArithmeticError) as error:
        config, problems = None, (f"{folder / 'config.json'}: {error}",)
    return Part(found, folder, layout, files, config, json, problems, prefix, tensors, scales)


def _check_counts(config: Config, tensors: int) -> None:
    """Raises ValueError where a configuration has more blocks than the files have tensors: it is not built then."""
    for key in ("num_layers", "num_single_layers", "num_hidden_layers", "layers_per_block"):
        if (count := getattr(config, key, 0)) > tensors:
            raise ValueError(f"{key} is {count:,}, but there are only {tensors:,} tensors")


def class_names(json: dict[str, Any]) -> list[str]:
    """The classes that a config.json names; what is no name is left out."""
    several = json.get("architectures")
    named = [json.get("_class_name"), *(several if isinstance(several, list) else [])]
    return [name for name in named if isinstance(name, str)]


def component_of(json: dict[str, Any]) -> tuple[str, Component] | None:
    """Which component a config.json describes: its folder's name, and the network."""
    classes = set(class_names(json))
    every = ((name, kind) for name, kinds in KNOWN.items() for kind in kinds.values())
    return next(((name, kind) for name, kind in every if classes & set(kind.class_names)), None)
