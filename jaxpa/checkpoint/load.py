"""Safetensors -> modules, tensor by tensor.

A parameter is assembled in one host buffer (several blocks, several tensors, transposed), put onto the device, and
cast there if it widens: beyond the model itself, one parameter is held at a time, and one tensor of blocks of few bits
while it is unpacked. A converted checkpoint has the parameters ready: they are used where the file is mapped.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jax.typing import DTypeLike

from jaxpa.checkpoint import hub
from jaxpa.checkpoint.keys import Leaf, abstract, component
from jaxpa.checkpoint.parts import PARTS, Part
from jaxpa.checkpoint.reading import assemble_host, edited, eight_bits, stored_dtype, unique
from jaxpa.checkpoint.residence import assemble, settle
from jaxpa.checkpoint.source import Adaptation, Edit, Source, find_mini, locate, resolve
from jaxpa.checkpoint.stages import Staged, settings_over
from jaxpa.config import WIDE, Asked, FluxConfig, Rounding, Settings, Weights
from jaxpa.errors import CheckpointError
from jaxpa.quantised import Quantised, of_scale, quantise

__all__ = [
    "Parts",
    "default_dtype",
    "find_mini",
    "load_component",
    "load_parts",
    "load_stages",
    "locate",
    "resolve",
]

# One for all, or a function of component, parameter path ("double_blocks.img.qkv.kernel") and shape.
Shardings = Sharding | Callable[[str, str, tuple[int, ...]], Sharding]


@dataclass
class Parts:
    """A loaded checkpoint. A part that was not asked for is None."""

    config: FluxConfig
    settings: Settings
    weights: Rounding = WIDE  # of the blocks, where they have eight bits
    transformer: Any = None  # Flux, or another backbone's module
    vae: Any = None  # Autoencoder
    text_encoder: Any = None  # CLIPTextEncoder
    text_encoder_2: Any = None  # T5Encoder
    tokenizers: dict[str, Path] = field(default_factory=dict)  # "tokenizer", "tokenizer_2" -> folder
    resident: ClassVar[bool] = True  # all networks are in memory at once: see `stages`
    bare: "Parts | None" = None  # the networks without what is kept beside their weights,
    kept: int = 0  # which is so many numbers

    def over(self, laid: Adaptation) -> "Parts":
        """The same networks with something else kept beside their weights, which are shared."""
        bare = self.bare or self
        held = {name: network for name in PARTS if (network := getattr(bare, name)) is not None}
        held = {name: laid.attach(name, network) for name, network in held.items()}
        settings = settings_over(bare.settings, laid)
        return dataclasses.replace(bare, config=laid.config, settings=settings, bare=bare, kept=laid.kept, **held)

    @property
    def dtype(self) -> np.dtype:
        """Of the transformer."""
        return np.dtype(self.transformer.dtype)


def default_dtype() -> np.dtype:
    """float32 on CPU, bfloat16 on GPU and TPU."""
    return np.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)


def load_component(
    source: str | Path | Source,
    dtype: DTypeLike | None = None,
    sharding: Shardings | None = None,
    weights: Asked | None = None,
) -> Any:
    """One network from its folder or single file. Raises CheckpointError with everything that is wrong."""
    found = source if isinstance(source, Source) else resolve(source)
    if len(found.parts) != 1:
        raise CheckpointError(f"{found.name} holds {', '.join(found.parts) or 'nothing'}; name one component's folder")
    (part,) = found.parts.values()
    demand(found, part.faults)
    return _load(part, dtype, sharding, found.rounded(weights).of(part.name))


def load_parts(
    source: str | Path | Source,
    components: str | Path | None = None,
    dtype: DTypeLike | None = None,
    sharding: Shardings | None = None,
    parts: Iterable[str] = PARTS,
    weights: Asked | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Parts:
    """The networks of a checkpoint and what belongs to them.

    source: `mini`, a diffusers or converted folder, a single file of the original release, a hub id; components:
    another source, for what the first does not hold; dtype: of all networks (None: `default_dtype`); weights: of
    the blocks of the transformer and of T5, rounded to eight bits as they are read; "wide": they are of `dtype` too
    (None: the same, except where the files have eight bits or fewer); progress: hears, after every network, how many
    bytes of the files have been read, and of how many.
    Raises CheckpointError with everything that is wrong, before any tensor is read as far as headers tell.
    """
    found = source if isinstance(source, Source) else resolve(source, components)
    wanted = [name for name in PARTS if name in tuple(parts)]
    if (laid := found.adaptation) is not None and laid.keep:
        bare = dataclasses.replace(found, adaptation=None)
        return load_parts(bare, None, dtype, sharding, wanted, weights, progress).over(laid)
    demand(found, found.faults(wanted), found.absent(wanted))
    rounding = found.rounded(weights)
    networks, done = dict[str, Any](), 0
    sizes = {name: sum(tensor.size for tensor in found.parts[name].stored_tensors) for name in wanted}
    for name in wanted:
        networks[name] = _network(found, name, dtype, sharding, rounding.of(name))
        done += sizes[name]
        if progress is not None:
            progress(done, sum(sizes.values()))
    return Parts(found.config, settings_of(found), rounding, tokenizers=found.tokenizers, **networks)


def load_stages(
    found: Source, dtype: DTypeLike | None = None, sharding: Shardings | None = None, weights: Asked | None = None
) -> Staged:
    """The same, each network loaded when its stage comes. Raises CheckpointError where `load_parts` does.

    Only numbers that are not finite are found later, when their network is read.
    """
    if (laid := found.adaptation) is not None and laid.keep:
        return load_stages(dataclasses.replace(found, adaptation=None), dtype, sharding, weights).over(laid)
    demand(found, found.faults(PARTS), found.absent(PARTS))
    rounding = found.rounded(weights)
    kind = default_dtype() if dtype is None else np.dtype(dtype)

    def load(name: str) -> Any:
        return _network(found, name, kind, sharding, rounding.of(name))

    return Staged(found.config, settings_of(found), rounding, found.tokenizers, kind, load)


def settings_of(source: Source) -> Settings:
    """What suits this checkpoint: its folder's own settings over FLUX.1's. Faulty ones are among `source.problems`."""
    variant = source.variant
    if source.config.transformer.guidance_embeds:
        usual = Settings(**variant.settings)
    else:
        usual = Settings(steps=4, guidance=0.0, max_length=256)
    return dataclasses.replace(usual, **source.settings | {"variant": variant.name})


def demand(source: Source, faults: list[str], absent: list[str] | None = None) -> None:
    """Raise if there are faults; say where absent parts can come from."""
    if not faults:
        return
    summary = f"{source.name} does not load: {len(faults)} problem{'s' if len(faults) > 1 else ''}"
    if absent and not source.whole:
        summary = (
            f"{source.name} holds the {' and the '.join(source.parts)} only; name a source of the rest, for instance\n"
            f"  --model {source.name} --components black-forest-labs/FLUX.1-dev   (a hub id, or a diffusers folder)"
        )
    if hub.in_cache(source.path):
        summary += (
            f"\n  its files are in the hub's cache, {source.path}:"
            "\n  delete those that are named below, and they are fetched again"
        )
    raise CheckpointError(summary, faults)


def _network(
    source: Source, name: str, dtype: DTypeLike | None, sharding: Shardings | None, weights: Weights | None
) -> Any:
    """A component, with what is merged into it."""
    part, laid = source.parts[name], source.adaptation
    if laid is None:
        return _load(part, dtype, sharding, weights)
    return _load(part, dtype, sharding, weights, laid.edits(name), getattr(laid.config, name))


def _load(
    part: Part,
    dtype: DTypeLike | None,
    sharding: Shardings | None,
    weights: Weights | None,
    edits: Mapping[str, Edit] = MappingProxyType({}),
    config: Any = None,
) -> Any:
    """The module of a part whose headers are faultless. config: that of the edited module (None: it is the same)."""
    assert part.config is not None
    dtype = default_dtype() if dtype is None else np.dtype(dtype)
    problems: list[str] = []
    arrays, platform = [], jax.default_backend()
    described = component(part.name, part.config)
    transformer: Any = part.config if part.name == "transformer" else None
    for leaf in part.leaves:
        rounded = weights if described.rounds(leaf.path) else None
        if (edit := edits.get(leaf.path)) is not None:
            host = edited(part, leaf, dtype if rounded is None else np.dtype(np.float32), edit, problems)
            host = host if rounded is None else quantise(host, rounded)
        elif rounded is not None:
            host = eight_bits(part, leaf, rounded, problems)
        else:
            host = assemble_host(part, leaf, _host_dtype(part, leaf, dtype), problems)
        where = sharding(part.name, leaf.path, leaf.shape) if callable(sharding) else sharding
        if not problems:
            if isinstance(host, Quantised):
                array = Quantised(*_place_quantised(host, where), inputs=rounded == "w8a8")
            else:
                array = jax.block_until_ready(_place(host, where).astype(dtype))
            arrays.append(settle(leaf.path, array, platform, transformer) if transformer else array)
    if problems:
        raise CheckpointError(f"{part.path} does not load: numbers that are not finite", unique(problems))
    structure = jax.tree_util.tree_structure(abstract(part.name, config or part.config, dtype))
    network = jax.tree_util.tree_unflatten(structure, arrays)
    return assemble(network) if transformer else network


def _place(host: np.ndarray, sharding: Sharding | None) -> jax.Array:
    if sharding is None:
        return jax.device_put(host)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def _place_quantised(host: Quantised, sharding: Sharding | None) -> tuple[jax.Array, jax.Array]:
    placed = _place(host.values, sharding), _place(host.scale, of_scale(sharding, host.values.ndim))
    return jax.block_until_ready(placed)


def _host_dtype(part: Part, leaf: Leaf, dtype: np.dtype) -> np.dtype:
    """The narrower of the stored and the wanted type, so that what is widened is widened on the device.

    On a CPU the device is the host, and numpy's conversion needs no compiling.
    """
    if jax.default_backend() == "cpu":
        return dtype
    stored = stored_dtype(part, leaf)
    return stored if stored.itemsize < dtype.itemsize else dtype
