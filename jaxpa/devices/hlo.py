"""Reads what a compiled program does off its optimized HLO text: loops and their trips, kernels, collectives, work.

    program = read(compiled.as_text());  total(program.root).cycles

XLA's own sums count the body of a loop once. Here every loop is a node whose figures are those of one iteration, and
`total` multiplies.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "f8e4m3fn": 1,
    "f8e5m2": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
    "c64": 8,
}
SLICES = ("dynamic-slice", "slice", "gather")
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
FREE = (
    "parameter",
    "get-tuple-element",
    "tuple",
    "bitcast",
    "constant",
    "while",
    "conditional",
    "call",
    "iota",
    "partition-id",
    "replica-id",
    "after-all",
    "optimization-barrier",
)


class Array(NamedTuple):
    """One array of an instruction's shape."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        return self.size * BYTES[self.dtype]


@dataclass(frozen=True)
class Instruction:
    """`arrays` has the arrays of its result, flat; `operands` the names of its arguments; `text` the whole line."""

    name: str
    op: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    text: str

    def called(self, *keys: str) -> list[str]:
        """The computations that it names under some of the keys (body, calls, ...)."""
        return re.findall(rf"\b(?:{'|'.join(keys)})=\{{?%?([\w.\-]+)", self.text)


Computation = dict[str, Instruction]


@dataclass
class Node:
    """A loop, or, as the root, the program: what one iteration does itself, and the loops inside it.

    collectives  kind -> how many, and kind + " bytes" -> bytes of their results on a device
    kernels      attention's and other custom calls by name -> how many
    seconds      kind of instruction -> the least time that its arithmetic or its traffic takes
    """

    trips: int | None
    cycles: int = 0
    launches: int = 0
    collectives: dict[str, Any] = field(default_factory=Counter)
    kernels: dict[str, Any] = field(default_factory=Counter)
    seconds: dict[str, Any] = field(default_factory=Counter)
    loops: list["Node"] = field(default_factory=list)

    @property
    def counters(self) -> tuple[dict[str, Any], ...]:
        return self.collectives, self.kernels, self.seconds


@dataclass(frozen=True)
class Peak:
    """The most that a device can do: FLOP and bytes a second."""

    flops: float
    bandwidth: float


def arrays(shape: str) -> tuple[Array, ...]:
    """The arrays in the text of a shape."""
    found = re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", shape)
    return tuple(Array(t, tuple(int(n) for n in dims.split(",") if n)) for t, dims in found if t in BYTES)


def _computations_of(text: str) -> tuple[dict[str, Computation], str]:
    """Every computation of a module by name, and the name of the entry."""
    found: dict[str, Computation] = {}
    current, entry = None, ""
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            current, entry = head[2], head[2] if head[1] else entry
            found[current] = {}
        elif current and (one := _instruction(line)):
            found[current][one.name] = one
    return found, entry


def _instruction(line: str) -> Instruction | None:
    head = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
    if head is None:
        return None
    rest = line[head.end() :]
    end = _closing(rest) if rest.startswith("(") else rest.index(" ")
    shape, tail = rest[:end], rest[end:].lstrip()
    op, _, arguments = tail.partition("(")
    operands = re.findall(r"%([\w.\-]+)", arguments[: _closing("(" + arguments)])
    return Instruction(head[1], op, arrays(shape), tuple(operands), line)


def _closing(text: str) -> int:
    """The length of a text up to the parenthesis that closes its first."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return i + 1
    return len(text)


@dataclass(frozen=True)
class Program:
    """A compiled module: its computations, and what it does as a tree of loops."""

    computations: dict[str, Computation]
    root: Node


def read(text: str, peak: Peak | None = None, trips: Iterable[int] = ()) -> Program:
    """A module's text as a tree. trips: those of the loops whose bounds are only known at run time, in order."""
    found, entry = _computations_of(text)
    return Program(found, _Reader(found, peak, iter(trips)).node(entry, 1))


def total(node: Node) -> Node:
    """The figures of one iteration, with the loops inside it multiplied by their trips; unknown ones count once."""
    collectives, kernels, seconds = map(Counter, node.counters)
    out = Node(node.trips, node.cycles, node.launches, collectives, kernels, seconds)
    for loop in map(total, node.loops):
        times = 1 if loop.trips is None else loop.trips
        out.cycles += times * loop.cycles
        out.launches += times * loop.launches
        for mine, theirs in zip(out.counters, loop.counters, strict=True):
            for key, value in theirs.items():
                mine[key] += times * value
    return out


@dataclass
class _Reader:
    computations: dict[str, Computation]
    peak: Peak | None
    unknown: Iterator[int]

    def node(self, name: str, trips: int | None) -> Node:
        node = Node(trips)
        self.fill(node, self.computations[name])
        return node

    def fill(self, node: Node, computation: Computation) -> None:
        for one in computation.values():
            if one.op == "while":
                trips = self.trips(one)
                trips = next(self.unknown, None) if trips is None else trips
                node.loops.append(self.node(one.called("body")[0], trips))
            elif one.op in ("call", "conditional"):
                for name in one.called("to_apply", "branch_computations", "true_computation", "false_computation"):
                    self.fill(node, self.computations[name])
            else:
                self.count(node, one, computation)

    def trips(self, loop: Instruction) -> int | None:
        """What XLA noted, or the bound that the counter is compared with; None: only known at run time."""
        if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.text):
            return int(known[1])
        condition = self.computations[loop.called("condition")[0]]
        root = list(condition.values())[-1]
        bounds = [_constant(condition.get(name)) for name in root.operands]
        if root.op == "compare" and "direction=LT" in root.text and len(bounds) == 2:
            return bounds[1]
        return None

    def count(self, node: Node, one: Instruction, computation: Computation) -> None:
        if cycles := re.search(r'estimated_cycles":"(\d+)"', one.text):
            node.cycles += int(cycles[1])
        inside = [c for name in one.called("calls") for c in self.computations.get(name, {}).values()]
        for each in (one, *inside):
            if (kind := each.op.removesuffix("-start")) in COLLECTIVES:
                node.collectives[kind] += 1
                node.collectives[f"{kind} bytes"] += sum(a.bytes for a in results(each))
        if kernel := _kernel_name(one):
            node.kernels[kernel] += 1
        if one.op in FREE or one.op.endswith("-done"):
            return
        node.launches += 1
        if self.peak is not None:
            kind, flops, moved = self.work(one, computation)
            node.seconds[kind] += max(flops / self.peak.flops, moved / self.peak.bandwidth)
            node.seconds["TFLOP"] += flops / 1e12

    def work(self, one: Instruction, computation: Computation) -> tuple[str, float, float]:
        """Of an instruction of XLA:GPU: its kind, its FLOPs in products, and the bytes that it reads and writes."""
        operands = [computation[name].arrays if name in computation else () for name in one.operands]
        body = next((self.computations[n] for n in one.called("calls") if n in self.computations), None)
        moved = _moved(one, operands, body)
        if one.op.removesuffix("-start") in COLLECTIVES:
            return "collectives", 0.0, 0.0
        if body is not None and (product := next((c for c in body.values() if _is_product(c)), None)) is not None:
            inner = [body[name].arrays if name in body else () for name in product.operands]
            return "products", _product_flops(product, inner), moved
        if _is_product(one):
            return "products", _product_flops(one, operands), moved
        if "fmha" in one.text.partition("custom_call_target=")[2][:40]:
            query, key = (next(iter(each)).dims for each in operands[:2])  # (B, S, H, Dh)
            (b, sq, h, d), sk = query, key[1]
            return "attention", 4.0 * b * sq * sk * h * d, moved
        if body is not None and _only_moves(body):
            sliced = any(c.op == "dynamic-slice" for c in body.values())
            return "slices" if sliced else "copies", 0.0, moved
        return ("copies" if one.op in ("copy", "copy-start", "transpose") else "fusions"), 0.0, moved


def results(one: Instruction) -> tuple[Array, ...]:
    """The arrays that a collective makes; the shape of an asynchronous start also has its operands."""
    if one.op.endswith("-start") and one.op != "all-reduce-start":
        data = [a for a in one.arrays if a.dims or a.dtype != "u32"]
        return tuple(data[len(data) // 2 :])
    return one.arrays


def _kernel_name(one: Instruction) -> str | None:
    """The name of a fused kernel that is not XLA's own: "cudnn", or a Pallas kernel's."""
    target = re.search(r'custom_call_target="([^"]+)"', one.text)
    if target is None:
        return None
    if "fmha" in target[1]:
        return "cudnn"
    if target[1] in ("tpu_custom_call", "__gpu$xla.gpu.triton"):
        return re.sub(r"[.\d]+$", "", one.name)
    return None


def _constant(one: Instruction | None) -> int | None:
    value = re.search(r"constant\((\d+)\)", one.text) if one is not None and one.op == "constant" else None
    return int(value[1]) if value else None


def _is_product(one: Instruction) -> bool:
    return one.op in ("dot", "convolution") or 'custom_call_target="__cublas$' in one.text


def _product_flops(one: Instruction, operands: list[tuple[Array, ...]]) -> float:
    """2 x (elements of the result) x (length of the sum)."""
    found = re.search(r'lhs_contracting_dim(?:ension)?s"?[=:][\[{]"?([\d",]+)', one.text)
    dims = [int(n) for n in re.findall(r"\d+", found[1])] if found else [-1]
    return 2.0 * one.arrays[0].size * math.prod(operands[0][0].dims[i] for i in dims)


def _moved(one: Instruction, operands: list[tuple[Array, ...]], body: Computation | None) -> float:
    """Bytes read and written, without cuBLAS's workspace (a vector of bytes) and what a slice skips."""
    written = sum(a.bytes for a in one.arrays if not (a.dtype == "s8" and len(a.dims) == 1))
    read = [sum(a.bytes for a in each) for each in operands]
    if body is not None:
        parameters = sorted((c for c in body.values() if c.op == "parameter"), key=_number)
        for i, parameter in enumerate(parameters[: len(read)]):
            users = list(_users(body, parameter))
            if users and all(c.op in SLICES and c.operands[0] == name for c, name in users):
                read[i] = sum(c.arrays[0].bytes for c, _ in users)
        if (last := list(body.values())[-1]).op == "dynamic-update-slice":
            return 2.0 * body[last.operands[1]].arrays[0].bytes  # in place
    return float(written + sum(read))


def _users(body: Computation, one: Instruction) -> Iterator[tuple[Instruction, str]]:
    """Who reads a value, and under which name: through bitcasts, which are other names of the same bytes."""
    for user in body.values():
        if one.name in user.operands:
            yield from _users(body, user) if user.op == "bitcast" else [(user, one.name)]


def _number(parameter: Instruction) -> int:
    found = re.search(r"parameter\((\d+)\)", parameter.text)
    return int(found[1]) if found else 0


def _only_moves(body: Computation) -> bool:
    """Whether a fusion computes nothing, but only copies what a loop's counter points to."""
    moves = ("parameter", "bitcast", "dynamic-slice", "copy", "transpose", "constant", "reshape", "tuple")
    index = ("compare", "select", "add", "subtract", "clamp")  # of the slice
    return all(c.op in moves or (c.op in index and not c.arrays[0].dims) for c in body.values())
