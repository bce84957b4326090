"""What networks are described in: where their modules are stored, how files call them, and which layers they have."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

# Stored tensors ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """A stored tensor without its suffix, or a part of it: `parts` [start, stop) of `of` equal ones.

    The parts lie along a linear layer's outputs, or along its `inputs` (its bias is then not taken apart).
    scale: the suffix of a norm's scale, where the layout is not our own.
    """

    name: str
    start: int = 0
    stop: int = 1
    of: int = 1
    inputs: bool = False
    scale: str = "weight"


@dataclass(frozen=True)
class Row:
    """Where a module of ours is stored; `jaxpa` None: under its own path. `swap`: halves of the outputs change place.

    `swap` concerns the diffusers layout only, whose last modulation is [scale; shift] where all others are
    [shift; scale].
    """

    diffusers: Stored
    bfl: Stored | None = None
    jaxpa: Stored | None = None
    swap: bool = False


def row(diffusers: str, bfl: str | None = None, swap: bool = False) -> Row:
    """The row of a module that is a whole tensor in every layout."""
    return Row(Stored(diffusers), None if bfl is None else Stored(bfl), swap=swap)


@dataclass(frozen=True)
class Component:
    """A network that a checkpoint holds under its own folder, and how its files call it.

    network: called as `network(config, *, rngs, dtype)`. config: a class with `from_json`. class_names: in
    `_class_name` or `architectures` of a config.json. rows: module path -> where it is stored. rounded: kernels
    that may have eight bits (`jaxpa.quantised`), those with nearly all the work and most of the bytes.
    """

    network: Callable[..., Any]
    config: Any
    class_names: tuple[str, ...]
    rows: Mapping[str, Row] | None = None
    rounded: re.Pattern[str] | None = None

    def rounds(self, path: str) -> bool:
        """Whether a parameter ("double_blocks.img.proj.kernel") is among those that may have eight bits."""
        return self.rounded is not None and self.rounded.fullmatch(path) is not None


# Work ----------------------------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """`times` equal linear layers, each applied to `rows`; a convolution has taps times channels inputs.

    rounds: its weights may have eight bits (`Component.rounded`).
    """

    inputs: int
    outputs: int
    rows: int
    times: int = 1
    bias: bool = True
    rounds: bool = False


@dataclass(frozen=True)
class Work:
    """A network on an input of a given size: its layers, attention's multiply-adds, and parameters outside layers."""

    layers: list[Layer]
    products: int = 0
    others: int = 0

    @property
    def flops(self) -> int:
        return 2 * (sum(x.inputs * x.outputs * x.rows * x.times for x in self.layers) + self.products)

    @property
    def parameters(self) -> int:
        return sum((x.inputs + x.bias) * x.outputs * x.times for x in self.layers) + self.others

    def saved(self, itemsize: int) -> int:
        """Bytes that eight-bit weights save of numbers of `itemsize`; every output has a scale of four."""
        return sum(((itemsize - 1) * x.inputs - 4) * x.outputs * x.times for x in self.layers if x.rounds)
