"""LoRAs over a checkpoint's networks: merged into the weights as they are read, or kept beside them.

Merged, W + B A is computed in float32 and rounded once, with the weights; sampling costs what it costs without. Kept,
every changed layer holds a `lowrank.LowRank`: the weights are untouched (so they may have eight bits, which a small
change would be lost in), other LoRAs take its place without loading them again, and their scales are data.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxpa.adapters.read import Adapter, Product, Vector, open_adapter
from jaxpa.adapters.spec import Lora
from jaxpa.backbones.registry import backbone_of
from jaxpa.checkpoint.files import Tensor, finite
from jaxpa.checkpoint.fit import mismatches
from jaxpa.checkpoint.keys import Leaf
from jaxpa.checkpoint.parts import PARTS
from jaxpa.checkpoint.source import Edit, Source
from jaxpa.config import Asked, FluxConfig, Rounding
from jaxpa.errors import CheckpointError
from jaxpa.layers import Numbered
from jaxpa.lowrank import LowRank, of_factors

QUIET = np.errstate(over="ignore", invalid="ignore")  # what is too large is told as an error


class Part(NamedTuple):
    """What one file changes of one parameter, in one of its blocks."""

    leaf: Leaf
    block: int
    change: Product | Vector
    scale: float


class Factors(NamedTuple):
    """Of one block: down (In, R), up (R, Out), strength (R,), float32."""

    down: np.ndarray
    up: np.ndarray
    strength: np.ndarray


@dataclass(frozen=True)
class Adapters:
    """LoRAs over networks of a configuration: a `source.Adaptation`."""

    own: FluxConfig
    loras: tuple[Lora, ...]
    opened: tuple[Adapter, ...]
    keep: bool

    @property
    def config(self) -> FluxConfig:
        """With the image tokens' channels that a control LoRA adds."""
        first, own = backbone_of(self.own.transformer).channels_in, self.own.transformer
        parts = self.parts["transformer"].get(f"{first}.kernel", ())
        widest = max((part.change.inputs for part in parts if isinstance(part.change, Product)), default=0)
        if widest <= own.in_channels:
            return self.own
        wider = replace(own, in_channels=widest, out_channels=own.velocity_channels)
        return replace(self.own, transformer=wider)

    @cached_property
    def parts(self) -> dict[str, dict[str, list[Part]]]:
        """Component -> parameter path -> what is changed of it."""
        found: dict[str, dict[str, list[Part]]] = {name: defaultdict(list) for name in PARTS}
        for lora, adapter in zip(self.loras, self.opened, strict=True):
            for change in (*adapter.products, *adapter.vectors):
                for leaf, block in change.parameters:
                    found[change.component][leaf.path].append(Part(leaf, block, change, lora.scale))
        return found

    @property
    def kept(self) -> int:
        """Numbers that stay beside the weights; a block that is changed less is filled up with zeros."""
        if not self.keep:
            return 0
        return sum(
            _blocks(parts) * _rank(parts) * (sum(self._size(parts)) + 1)
            for component in self.parts.values()
            for parts in component.values()
            if any(isinstance(part.change, Product) for part in parts)
        )

    def _size(self, parts: list[Part]) -> tuple[int, int]:
        """Inputs and outputs of a parameter."""
        leaf, first = parts[0].leaf, backbone_of(self.own.transformer).channels_in
        widened = self.config.transformer.in_channels if leaf.path == f"{first}.kernel" else leaf.block_shape[-2]
        return widened, leaf.block_shape[-1]

    def edits(self, component: str) -> Mapping[str, Edit]:
        """What becomes of a component's parameters as they are read, if the LoRAs are merged into them."""
        return {} if self.keep else {path: partial(self._edit, parts) for path, parts in self.parts[component].items()}

    @QUIET
    def _edit(self, parts: list[Part], index: int, block: np.ndarray) -> np.ndarray:
        block = _edit_vector(parts, index, block.astype(np.float32))
        if any(isinstance(part.change, Product) for part in parts):
            inputs, outputs = self._size(parts)
            block = np.concatenate([block, np.zeros((inputs - len(block), outputs), np.float32)])
            down, up, strength = self._factors(parts, index)
            block = block + (down * strength) @ up
        self._check(parts, block)
        return block

    def _check(self, parts: list[Part], *arrays: np.ndarray) -> None:
        """Raise CheckpointError for a change that is larger than numbers are."""
        if not all(map(finite, arrays)):
            files = ", ".join(str(lora) for lora in self.loras)
            path = parts[0].leaf.path
            raise CheckpointError(f"LoRA {files}: the change of {path} is too large for a number: give a smaller scale")

    def _factors(self, parts: list[Part], index: int) -> Factors:
        """The products of all files that change a block of a layer, side by side."""
        inputs, outputs = self._size(parts)
        empty = Factors(np.zeros((inputs, 0), np.float32), np.zeros((0, outputs), np.float32), np.zeros(0, np.float32))
        found = [empty]
        for leaf, block, change, scale in parts:
            if block == index and isinstance(change, Product):
                matrices = (_read(each).reshape(each.shape[:2]) for each in (change.down, change.up))
                down, up = (each.astype(np.float32) for each in leaf.factors(*matrices))
                down = np.concatenate([down, np.zeros((inputs - len(down), change.rank), np.float32)])
                found.append(Factors(down, up, np.full(change.rank, scale * change.factor, np.float32)))
        downs, ups, strengths = zip(*found, strict=True)
        return Factors(np.concatenate(downs, 1), np.concatenate(ups), np.concatenate(strengths))

    def attach(self, component: str, network: Any) -> Any:
        """The network with what is kept beside its weights; arrays are shared with the network that is given."""
        if not self.keep or not self.parts[component]:
            return network
        out = jax.tree.map(lambda x: x, network)  # modules of its own
        dtype = np.dtype(network.dtype if component == "transformer" else network.token_embedding[...].dtype)
        for path, parts in self.parts[component].items():
            if isinstance(parts[0].change, Product):
                self._attach_product(modules_at(out, path), parts, dtype)
            else:
                self._attach_vector(modules_at(out, path), parts)
        if component == "transformer":
            out.config = self.config.transformer
        return out

    def attach_shapes(self, network: Any) -> Any:
        """The transformer as shapes (`jax.ShapeDtypeStruct`), with the shapes of what is kept beside it."""
        out = jax.tree.map(lambda x: x, network)
        for path, parts in self.parts["transformer"].items() if self.keep else ():
            if not isinstance(parts[0].change, Product):
                continue  # is changed in its place
            rank, (inputs, outputs) = _rank(parts), self._size(parts)
            for module in modules_at(out, path):
                base = module.kernel.get_value()
                lead = jax.tree.leaves(base)[0]
                stacked = lead.shape[:1] if lead.ndim > 2 else ()
                sizes = ((inputs, rank), (rank, outputs), (rank,))
                kinds = (network.dtype, network.dtype, np.dtype(np.float32))
                placed = (
                    jax.ShapeDtypeStruct((*stacked, *size), kind, sharding=where)
                    for size, kind, where in zip(sizes, kinds, of_factors(lead, inputs), strict=True)
                )
                module.kernel = nnx.Param(LowRank(base, *placed))
        return out

    @QUIET
    def _attach_product(self, modules: list[Any], parts: list[Part], dtype: np.dtype) -> None:
        inputs, outputs = self._size(parts)
        each = [self._factors(parts, index) for index in range(_blocks(parts))]
        shape = (len(each), _rank(parts))
        down, up = np.zeros((*shape, inputs), dtype).swapaxes(1, 2), np.zeros((*shape, outputs), dtype)
        strength = np.zeros(shape, np.float32)
        for index, of_block in enumerate(each):
            rank = len(of_block.strength)
            down[index, :, :rank], up[index, :rank], strength[index, :rank] = of_block
        self._check(parts, down, up, strength)
        for index, module in enumerate(modules):
            base = _widened(module.kernel.get_value(), inputs)
            lead = jax.tree.leaves(base)[0]  # the matrices themselves
            which = index if lead.ndim == 2 else slice(None)
            where = of_factors(lead, inputs)
            placed = (jax.device_put(host[which], each) for host, each in zip((down, up, strength), where, strict=True))
            module.kernel = nnx.Param(LowRank(base, *placed))

    @QUIET
    def _attach_vector(self, modules: list[Any], parts: list[Part]) -> None:
        name, count = parts[0].leaf.path.rpartition(".")[2], _blocks(parts)
        replaced = {part.block for part in parts if isinstance(part.change, Vector) and part.change.replaces}
        for index, module in enumerate(modules):
            parameter = getattr(module, name)
            array = parameter.get_value()
            blocks = range(count) if array.ndim == 2 else [index]
            added = np.stack([_edit_vector(parts, i, np.zeros(array.shape[-1], np.float32)) for i in blocks])
            self._check(parts, added)
            old = np.array([[i not in replaced] for i in blocks], np.float32)
            change = jax.device_put(added.reshape(array.shape), array.sharding)
            changed = array.astype(jnp.float32) * (old if array.ndim == 2 else old[0]) + change
            setattr(module, name, nnx.Param(changed.astype(array.dtype)))


def over(config: FluxConfig, loras: Iterable[Lora], keep: bool) -> Adapters:
    """LoRAs over networks of this configuration. Raises CheckpointError with every fault of every file."""
    loras = tuple(loras)
    adapters = Adapters(config, loras, tuple(open_adapter(lora.file, config) for lora in loras), keep)
    faults = [fault for adapter in adapters.opened for fault in adapter.faults]
    faults += [
        f"{adapter.file}: '{change.tensor.key}' changes a whole matrix, which can be merged only: --keep-lora no"
        for adapter in adapters.opened
        for change in adapter.vectors
        if keep and change.whole
    ]
    if not faults and adapters.config is not config:
        names = ("transformer", "vae")
        faults = mismatches({name: getattr(adapters.config, name) for name in names})
    if faults:
        files = ", ".join(dict.fromkeys(lora.file for lora in loras))
        count = f"{len(faults)} problem{'s' if len(faults) > 1 else ''}"
        raise CheckpointError(f"LoRA {files} cannot be used: {count}", faults)
    return adapters


def keeps(said: bool | None, weights: Rounding) -> bool:
    """Whether LoRAs are kept beside the weights: as said (None: beside weights of eight bits), else merged."""
    return any(weights) if said is None else said


def adapt(source: Source, loras: Iterable[Lora], keep: bool | None, weights: Asked | None = None) -> Source:
    """A checkpoint with LoRAs over it; keep: see `keeps`.

    Raises CheckpointError where they do not fit; a checkpoint with faults of its own is left to whoever loads it.
    """
    loras = tuple(loras)
    if not loras or (source.described is None and source.faults(source.parts)):
        return source
    rounding = source.rounded(weights)
    held = [part.stored for name, part in source.parts.items() if part.stored and part.stored in rounding]
    if keep is False and held:
        raise CheckpointError(
            f"{source.name} holds weights in {held[0]}: LoRAs can be kept beside them, or merged with --weights wide"
        )
    return replace(source, adaptation=over(source.own_config, loras, keeps(keep, rounding)))


def _blocks(parts: list[Part]) -> int:
    """Of a parameter that has an axis of them; else 1."""
    leaf = parts[0].leaf
    return len(leaf.sources) if leaf.stacked else 1


def _rank(parts: list[Part]) -> int:
    """Of all files together, in the block where it is highest."""
    ranks: dict[int, int] = defaultdict(int)
    for part in parts:
        ranks[part.block] += part.change.rank if isinstance(part.change, Product) else 0
    return max(ranks.values())


def _read(tensor: Tensor) -> np.ndarray:
    array = tensor.read()
    if not finite(array):
        raise CheckpointError(f"{tensor.file}: tensor '{tensor.key}' has numbers that are not finite")
    return array


def _edit_vector(parts: list[Part], index: int, block: np.ndarray) -> np.ndarray:
    """A bias or a norm's scale, changed; or a matrix by what is no product."""
    for leaf, own, change, scale in parts:
        if own == index and isinstance(change, Vector):
            value = leaf.take(_read(change.tensor).astype(np.float32))
            block = value if change.replaces else block + np.float32(scale * change.factor) * value
    return block


def _widened(kernel: Any, inputs: int) -> Any:
    """A kernel (In, Out) with inputs that count for nothing yet; a block's has all."""
    if not isinstance(kernel, jax.Array) or kernel.ndim > 2 or (missing := inputs - len(kernel)) == 0:
        return kernel
    return jax.device_put(jnp.pad(kernel, ((0, missing), (0, 0))), kernel.sharding)


def modules_at(network: Any, path: str) -> list[Any]:
    """The modules that hold a parameter: one, or one for each block where blocks stand apart."""
    first, *rest, _ = path.split(".")
    top = getattr(network, first)
    found = list(top) if isinstance(top, Numbered) else [top]
    for name in rest:
        found = [getattr(module, name) for module in found]
    return found
