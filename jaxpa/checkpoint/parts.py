"""One component of a checkpoint as its headers describe it: configuration, names, shapes, and every fault.

A component is a folder with a config.json (diffusers', or a converted one), or it lies in a single file of the original
release, which has no configuration: there the shapes tell it, as far as they can.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxpa.backbones.registry import BACKBONES
from jaxpa.backbones.shapes import Shape, axes, count_blocks
from jaxpa.checkpoint.documents import read_json
from jaxpa.checkpoint.files import DTYPES, EIGHT_BITS, Files, Tensor, read_folder
from jaxpa.checkpoint.keys import COMPONENTS, KNOWN, Component, Config, Layout, Leaf, canonical, component, leaves
from jaxpa.config import AutoencoderConfig, Weights

PARTS = tuple(COMPONENTS)

Infer = Callable[[dict[str, Shape], dict[str, Any] | None], Config]

# What only the autoencoder has in the original single files; a prefix may stand in front, a block's number follows.
AUTOENCODER = re.compile(r"^(.*?)(?:encoder\.down|decoder\.up)\.\d+\.")


STORED_AS: dict[str, Weights] = {"I8": "int8", "F8_E4M3": "fp8"}


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

    @cached_property
    def leaves(self) -> list[Leaf]:
        return [] if self.config is None else leaves(self.name, self.config, self.layout)

    @cached_property
    def expected(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """Every tensor that the configuration asks for, with the shapes that will do."""
        found = {key: shapes for leaf in self.leaves for key, shapes in leaf.expected().items()}
        rounded = (leaf for leaf in self.leaves if self.in_eight_bits(leaf))
        return found | {scale_of(leaf): ((*leaf.shape[:-2], leaf.shape[-1]),) for leaf in rounded}

    def in_eight_bits(self, leaf: Leaf) -> bool:
        """Whether a parameter is stored as a `Quantised`, in a folder that `convert` wrote."""
        if self.config is None or self.layout != "jaxpa" or not component(self.name, self.config).rounds(leaf.path):
            return False
        return leaf.sources[0] in self.tensors and self.tensors[leaf.sources[0]].dtype in EIGHT_BITS

    @property
    def weights(self) -> Weights | None:
        """Of how many bits its blocks are stored; None: of as many as the rest."""
        found = next((leaf for leaf in self.leaves if self.in_eight_bits(leaf)), None)
        return None if found is None else STORED_AS[self.tensors[found.sources[0]].dtype]

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
            if t.dtype not in DTYPES and key in self.expected and key not in rounded
        ]
        return [*self.problems, *self.files.problems, *types]

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
    tensors = {key: files.tensors[actual] for key, actual in names.items()}
    fronts = ("text_model.", "vision_model.")
    prefix = next((front for front in fronts if any(key.startswith(front) for key in files.tensors)), "")
    try:
        config, problems = kind.config.from_json(json), ()
        if files.unknown is not None:
            check_counts(config, len(tensors) + len(files.unknown))
        leaves(found, config, layout)  # a configuration that no network can be built from fails here
    except (ValueError, TypeError, ArithmeticError) as error:
        config, problems = None, (f"{folder / 'config.json'}: {error}",)
    return Part(found, folder, layout, files, config, json, problems, prefix, tensors)


def check_counts(config: Config, tensors: int) -> None:
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


def open_bfl(file: Path, hints: dict[str, dict[str, Any]]) -> list[Part]:
    """The components in a single file of the original release; [] where its names are not that release's.

    hints: config.json contents of other components, for what shapes do not tell.
    """
    files = Files()
    files.add(file)
    if files.unknown is None:
        return [Part("unknown", file, "bfl", files)]
    found = _recognised(files.tensors)
    parts = []
    for name, (prefix, infer) in found.items():
        others = [other for key, (other, _) in found.items() if key != name]
        longer = tuple(other for other in others if len(other) > len(prefix))  # the other's, though it fits here
        mine = {
            key.removeprefix(prefix): tensor
            for key, tensor in files.tensors.items()
            if key.startswith(prefix) and not key.startswith(longer)
        }
        if not parts:  # what has nobody's prefix is left over here, so that it is reported
            mine |= {key: t for key, t in files.tensors.items() if not key.startswith((prefix, *others))}
        part = Part(name, file, "bfl", files if not parts else Files(), prefix=prefix, tensors=mine)
        parts.append(_inferred(part, infer, hints.get(name)))
    return parts


def _recognised(names: Iterable[str]) -> dict[str, tuple[str, Infer]]:
    """The components that have original names among these: the prefix there, and what infers the configuration.

    A backbone is the one whose names are the most; of two alike, the first.
    """
    known: list[tuple[str, re.Pattern[str], Infer]] = [
        *(("transformer", backbone.signature, backbone.infer) for backbone in BACKBONES.values()),
        ("vae", AUTOENCODER, infer_autoencoder),
    ]
    found: dict[str, tuple[int, str, Infer]] = {}
    for name, pattern, infer in known:
        prefixes = Counter(match[1] for key in names if (match := pattern.match(key)))
        for prefix, count in prefixes.most_common(1):
            if name not in found or count > found[name][0]:
                found[name] = count, prefix, infer
    return {name: (prefix, infer) for name, (_, prefix, infer) in found.items()}


def _inferred(part: Part, infer: Infer, hint: dict[str, Any] | None) -> Part:
    """The part with the configuration that its shapes tell."""
    try:
        config = infer({key: tensor.shape for key, tensor in part.tensors.items()}, hint)
        leaves(part.name, config, part.layout)
    except (ValueError, TypeError, ArithmeticError) as error:
        return replace(part, problems=(f"{part.path}: {error}",))
    return replace(part, config=config)


def infer_autoencoder(shapes: dict[str, Shape], hint: dict[str, Any] | None) -> AutoencoderConfig:
    """The autoencoder's configuration from shapes; scale, shift and groups are FLUX's or those of `hint`.

    Raises ValueError where they do not tell it, or with the name of a tensor that is needed and missing.
    """
    count = count_blocks(shapes, r"encoder\.down\.(\d+)\.")
    widths = [axes(shapes, f"encoder.down.{i}.block.0.conv1.weight", 4)[0] for i in range(count)]
    known = {key: hint[key] for key in ("norm_num_groups", "scaling_factor", "shift_factor") if hint and key in hint}
    groups = known.get("norm_num_groups")
    if groups is None and any(width % AutoencoderConfig.norm_num_groups for width in widths):
        raise ValueError(
            f"blocks of {widths} channels have no {AutoencoderConfig.norm_num_groups} groups to norm, and the file "
            "does not say how many: pass --components FOLDER with a vae/config.json"
        )
    return AutoencoderConfig.from_json(
        {
            "in_channels": axes(shapes, "encoder.conv_in.weight", 4)[1],
            "out_channels": axes(shapes, "decoder.conv_out.weight", 4)[0],
            "latent_channels": axes(shapes, "decoder.conv_in.weight", 4)[1],
            "block_out_channels": widths,
            "layers_per_block": count_blocks(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
            "mid_block_add_attention": any(".mid.attn_1." in key for key in shapes),
            **known,
        }
    )
