"""A parameter's numbers on the host, out of its files: as they are stored, widened, rounded or edited."""

import numpy as np

from jaxpa.checkpoint.files import EVERY, finite
from jaxpa.checkpoint.gguf import PACKED
from jaxpa.checkpoint.keys import Leaf
from jaxpa.checkpoint.parts import Part
from jaxpa.checkpoint.source import Edit
from jaxpa.config import Weights
from jaxpa.quantised import Quantised, quantise


def stored_dtype(part: Part, leaf: Leaf) -> np.dtype:
    """Of a parameter's numbers as `block` reads them."""
    types = part.types(leaf)
    if len(types) != 1 or types <= PACKED.keys() or any(part.scale(leaf, i) for i in range(len(leaf.sources))):
        return np.dtype(np.float32)
    return EVERY[types.pop()]


def assemble_host(part: Part, leaf: Leaf, dtype: np.dtype, problems: list[str]) -> np.ndarray:
    """A parameter on the host: the mapped file itself where it lies there as it is wanted, else one buffer."""
    if part.in_eight_bits(leaf):
        return _widened(part, leaf, dtype, problems)
    if not leaf.stacked:
        return _laid_out(leaf, block(part, leaf, 0, problems), dtype)
    out = np.empty(leaf.shape, dtype)
    for index in range(len(leaf.sources)):
        copy(out[index], block(part, leaf, index, problems))
    return out


def _laid_out(leaf: Leaf, stored: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A whole parameter of this type: what was read, where it lies as it is wanted, else a buffer."""
    if not leaf.transpose:
        return stored if stored.dtype == dtype else stored.astype(dtype)
    out = np.empty(leaf.shape, dtype)
    copy(out, stored)
    return out


def _widened(part: Part, leaf: Leaf, dtype: np.dtype, problems: list[str]) -> np.ndarray:
    """A kernel of a converted folder that is stored in eight bits, block by block."""
    stored, scale = raw(part, leaf, 0, problems), scales(part, leaf, 0, problems)
    out = np.empty(leaf.shape, dtype)
    for index in np.ndindex(leaf.shape[:-2]):
        out[index] = stored[index].astype(np.float32) * scale[index]
    return out


def eight_bits(part: Part, leaf: Leaf, kind: Weights, problems: list[str]) -> Quantised:
    """A kernel in eight bits: as it is stored, or rounded, block by block."""
    dtype = part.held_as(leaf, kind)

    def read(index: int) -> Quantised:
        if part.keeps(leaf, index, dtype):
            return Quantised(raw(part, leaf, index, problems), scales(part, leaf, index, problems))
        return quantise(block(part, leaf, index, problems), kind)

    if not leaf.stacked:
        only = read(0)
        return Quantised(_laid_out(leaf, only.values, dtype), only.scale)
    out = Quantised(np.empty(leaf.shape, dtype), np.empty((leaf.shape[0], leaf.shape[-1]), np.float32))
    for index in range(len(leaf.sources)):
        each = read(index)
        copy(out.values[index], each.values)
        out.scale[index] = each.scale
    return out


def edited(part: Part, leaf: Leaf, dtype: np.dtype, edit: Edit, problems: list[str]) -> np.ndarray:
    """A parameter on the host, made anew block by block: the edit computes in float32, and is rounded once."""
    if leaf.stacked:
        blocks = (block(part, leaf, index, problems) for index in range(len(leaf.sources)))
    else:
        stored = block(part, leaf, 0, problems)
        if len(leaf.shape) == (2 if leaf.path.endswith(".kernel") else 1):
            return edit(0, stored).astype(dtype)
        blocks = iter(stored)  # stacked in the file too
    out = np.empty(leaf.shape, dtype)
    for index, each in enumerate(blocks):
        copy(out[index], edit(index, each))
    return out


def raw(part: Part, leaf: Leaf, index: int, problems: list[str]) -> np.ndarray:
    """A parameter (its block) as it is stored, in our orientation. Notes it if a number is not finite.

    Only the rows that are the parameter's are read, and unpacked if they are packed.
    """
    tensor = part.tensors[leaf.sources[index]]
    array = tensor.read(leaf.rows)
    if (leaf.begins or leaf.rows is not None) and not finite(array):
        problems.append(f"{tensor.file}: tensor '{tensor.key}' has numbers that are not finite")
    return leaf.take_rows(array)


def block(part: Part, leaf: Leaf, index: int, problems: list[str]) -> np.ndarray:
    """The same times its scale, if it has one: the numbers that are meant. They are float32 then."""
    stored = raw(part, leaf, index, problems)
    scale = _scale(part, leaf, index, problems)
    return stored if scale is None else stored.astype(np.float32) * scale[..., None, :]


def scales(part: Part, leaf: Leaf, index: int, problems: list[str]) -> np.ndarray:
    """The scales (..., Out) of a kernel (of its block) that is kept in eight bits; 1 where the file has none."""
    found = _scale(part, leaf, index, problems)
    return np.ones(leaf.block_shape[-1], np.float32) if found is None else found


def _scale(part: Part, leaf: Leaf, index: int, problems: list[str]) -> np.ndarray | None:
    """The scales of a kernel's outputs (of its block), (..., Out) float32; None: there are none."""
    if (tensor := part.scale(leaf, index)) is None:
        return None
    array = tensor.read().astype(np.float32)
    if not (finite(array) and (array > 0).all()):
        problems.append(f"{tensor.file}: the scale '{tensor.key}' has numbers that are not finite, or not above zero")
    return array if part.layout == "jaxpa" else leaf.outputs(array.reshape(-1))


def unique(problems: list[str]) -> list[str]:
    """Each line once: the parameters that share a tensor note its faults one by one."""
    return list(dict.fromkeys(problems))


def copy(out: np.ndarray, x: np.ndarray) -> None:
    """out[...] = x. A transposed matrix goes in bands that stay in cache (5 times faster)."""
    if out.dtype == x.dtype and x.dtype.itemsize <= 2:  # bytes are bytes; numpy is slower on bfloat16 and fp8
        out, x = (each.view(f"u{each.dtype.itemsize}") for each in (out, x))
    band = 32 if x.ndim == 2 else max(out.shape[-1], 1)
    for i in range(0, out.shape[-1], band):
        out[..., i : i + band] = x[..., i : i + band]
