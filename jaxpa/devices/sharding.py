"""Which device holds which part of which parameter: one table of rules over the mesh axes "data" and "model".

Linear layers are split in pairs, the first by columns, the second by rows (Shoeybi et al. 2019, arXiv:1909.08053): the
heads or hidden channels between the two lie on different devices, and one sum over "model" follows the second. Batch
rows are split over "data". The networks do not mention any of this: XLA's partitioner reads it off the arrays
(`AxisType.Auto`), so one program text serves one device and many.

    mesh = make_mesh(data=2, model=4)
    parts = load_parts("mini", sharding=rules(mesh));  tokens = over_rows(mesh, tokens)
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpa.backbones.registry import BACKBONES
from jaxpa.errors import JaxpaError, quoted

DATA, MODEL = "data", "model"

# Component and parameter path -> spec of the *last* axes; a stacked parameter's leading axis L stays whole, since the
# scan over blocks slices it. The first match counts. Every device holds what no rule names: embeddings, norms, the
# autoencoder, the first and last layers. A transformer's rules are its backbone's.
Rule = tuple[str, P]
ENCODERS: tuple[Rule, ...] = (
    (r"text_encoder_2\.blocks\.(attention\.[qkv]|mlp\.wi_[01])\.kernel", P(None, MODEL)),
    (r"text_encoder_2\.blocks\.(attention\.o|mlp\.wo)\.kernel", P(MODEL, None)),
    (r"text_encoder\.blocks\.(attention\.[qkv]|fc1)\.kernel", P(None, MODEL)),
    (r"text_encoder\.blocks\.(attention\.[qkv]|fc1)\.bias", P(MODEL)),
    (r"text_encoder\.blocks\.(attention\.out|fc2)\.kernel", P(MODEL, None)),
)


def table() -> tuple[Rule, ...]:
    """All rules: those of the backbones, whose patterns fit their own modules alone, and the text encoders'."""
    backbones = ((pattern, P(*axes)) for backbone in BACKBONES.values() for pattern, axes in backbone.rules)
    return (*((rf"transformer\.(?:{pattern})", axes) for pattern, axes in backbones), *ENCODERS)


def make_mesh(data: int = 1, model: int | None = None) -> Mesh:
    """A mesh of all devices, `data` x `model`; model None: as many as are left.

    Raises JaxpaError where the two do not multiply to the number of devices.
    """
    devices = len(jax.devices())
    wanted = devices // max(data, 1) if model is None else model
    if data < 1 or wanted < 1 or data * wanted != devices:
        asked = f"data = {data}" + ("" if model is None else f" x model = {model}")
        raise JaxpaError(
            f"a mesh of {asked} does not fit {devices} device{'s' * (devices > 1)}: "
            f"data x model must be {devices} (XLA_FLAGS and CUDA_VISIBLE_DEVICES decide what JAX sees)"
        )
    return jax.make_mesh((data, wanted), (DATA, MODEL), axis_types=(AxisType.Auto,) * 2)


def read_sides(text: str) -> dict[str, int]:
    """`data=2,model=4`, either of them left out -> the sides that are named. Raises JaxpaError for other words."""
    sides: dict[str, int] = {}
    for part in text.split(","):
        name, equals, size = part.strip().partition("=")
        if name not in (DATA, MODEL) or name in sides or not equals or not size.isdecimal():
            raise JaxpaError(f"a mesh is written data=D,model=M, such as --mesh data=2,model=4, not {text!r}")
        sides[name] = int(size)
    return sides


def parse_mesh(text: str) -> Mesh:
    """`read_sides` as a mesh of all devices. Raises JaxpaError."""
    sides = read_sides(text)
    if MODEL in sides and DATA not in sides:
        return make_mesh(max(1, len(jax.devices()) // max(sides[MODEL], 1)), sides[MODEL])
    return make_mesh(sides.get(DATA, 1), sides.get(MODEL))


def automatic(mesh: Mesh) -> Mesh:
    """A user's mesh as the networks need it: its axes "data" and "model", partitioned by XLA.

    Raises JaxpaError where it has other axes.
    """
    if not isinstance(mesh, Mesh):
        raise JaxpaError(f"a mesh is a jax.sharding.Mesh (see make_mesh), not {quoted(mesh)}")
    if unknown := [name for name in mesh.axis_names if name not in (DATA, MODEL)]:
        raise JaxpaError(f"the mesh has an axis {unknown[0]!r}: its axes are called {DATA!r} and {MODEL!r}")
    missing = [name for name in (DATA, MODEL) if name not in mesh.axis_names]
    devices = mesh.devices.reshape(*mesh.devices.shape, *(1 for _ in missing))
    return Mesh(devices, (*mesh.axis_names, *missing), axis_types=(AxisType.Auto,) * 2)


def over_rows(mesh: Mesh, tree: Any) -> Any:
    """Arrays (B, ...) on the devices of a mesh, their rows over "data" where they divide."""

    def put(x: Any) -> jax.Array:
        rows = P(DATA) if np.ndim(x) and len(x) % mesh.shape[DATA] == 0 else P()
        return jax.device_put(x, NamedSharding(mesh, rows))

    return jax.tree.map(put, tree)


def spec(component: str, path: str, shape: tuple[int, ...], sizes: dict[str, int]) -> P:
    """The rule for a parameter, on a mesh whose axes have these sizes; an axis that does not divide stays whole."""
    name = f"{component}.{path}"
    rule = next((spec for pattern, spec in table() if re.fullmatch(pattern, name)), P())
    axes = (None,) * (len(shape) - len(rule)) + tuple(rule)
    return P(*(axis if axis and size % sizes[axis] == 0 else None for axis, size in zip(axes, shape, strict=True)))


def rules(mesh: Mesh | AbstractMesh) -> Callable[[str, str, tuple[int, ...]], NamedSharding]:
    """The table on a mesh: (component, parameter path, shape) -> sharding, as `checkpoint.load_parts` asks it."""
    sizes = dict(mesh.shape)
    return lambda component, path, shape: NamedSharding(mesh, spec(component, path, shape, sizes))
