"""The programs that a command runs, with shapes and shardings in place of arrays: to be compiled, not to be run.

    function, arguments = program(Job(config.transformer, grid=(64, 64)), mesh, "tpu")
    jax.jit(function).trace(*arguments).lower(lowering_platforms=("tpu",)).compile()

A program is one fused sampling: the work that is done once an image, then all steps as a loop. Nothing is allocated.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from jaxpa import personalize, sampling
from jaxpa.backbones.backbone import BackboneConfig
from jaxpa.backbones.registry import backbone_of
from jaxpa.checkpoint.keys import abstract, path_of
from jaxpa.checkpoint.residence import arrange
from jaxpa.checkpoint.source import Adaptation
from jaxpa.config import Weights
from jaxpa.devices.sharding import DATA, rules
from jaxpa.encoders.text import TextEmbedding
from jaxpa.personalize import Phase, Task
from jaxpa.presets import PRESETS, Preset
from jaxpa.quantised import DTYPES, Quantised, of_scale
from jaxpa.routing import context_routing, context_size, join, replacement_index, replacement_weight
from jaxpa.sampling import Accompanied, Guided
from jaxpa.solvers import Name
from jaxpa.tokens import Placement, Routing, grid_positions


@dataclass(frozen=True)
class Job:
    """What is sampled. references: 0, plain generation; masked: tokens of all their subjects, for the context's size.

    above: how many steps start above tau, if they are to be counted.
    guided: classifier-free guidance, two rows an image, for a checkpoint that does not embed its guidance. weights: of
    the blocks (None: of `dtype`). beside: tokens of a picture in every sequence. adaptation: what lies beside the
    weights. cache: whether steps may skip the network; a compiled program counts as if none did.
    """

    config: BackboneConfig
    grid: tuple[int, int]
    text_tokens: int = 512
    images: int = 1
    references: int = 0
    steps: int = 28
    above: int | None = None
    guided: bool = False
    preset: Preset = PRESETS["official"]
    masked: int = 0
    dtype: DTypeLike = jnp.bfloat16
    weights: Weights | None = None
    beside: int = 0
    solver: Name = "euler"
    cache: bool = False
    adaptation: Adaptation | None = field(default=None, compare=False)  # the network's shapes say it

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def threshold(self) -> jax.Array | None:
        """Of skipped steps."""
        return jnp.float32(0.1) if self.cache else None

    def drawn(self, made: Any) -> jax.Array:
        """The tokens of a sampling, without the count that comes with them where steps may be skipped."""
        return made[0] if self.cache else made


class Text(NamedTuple):
    """Embedded prompts of R + G rows, and the rows (G) that classifier-free guidance pushes away from, or None.

    channels (1, N, C'), picture (1, K, C): what the network reads of a picture, as further channels or tokens, or None.
    """

    txt: jax.Array
    vec: jax.Array
    guidance: jax.Array | None
    negative: tuple[jax.Array, jax.Array] | None
    channels: jax.Array | None = None
    picture: jax.Array | None = None


class Reference(NamedTuple):
    """A personalisation's arrays: a `Task`'s, masks (R, N), placement (G, R, N), and shares (R, N) of soft masks."""

    trajectory: jax.Array
    eta: jax.Array
    tau: jax.Array
    masks: jax.Array
    placement: Placement
    shares: jax.Array | None = None


def program(job: Job, mesh: Mesh, platform: str) -> tuple[Callable[..., jax.Array], tuple[Any, ...]]:
    """A function, and the shapes of its arguments (the network first) as a mesh of that platform holds them."""
    shapes = _Shapes(mesh)
    x = shapes.rows(job.images, job.tokens, job.config.velocity_channels)
    arguments = model(job, mesh, platform), _text(job, shapes), x, shapes.whole(job.steps + 1)
    return (_Personalize(job), (*arguments, _reference(job, shapes))) if job.references else (_Sample(job), arguments)


def model(job: Job, mesh: Mesh, platform: str) -> Any:
    """The network as shapes, with the shardings of `sharding.rules`, and arranged as the platform wants it."""
    flat, tree = jax.tree_util.tree_flatten_with_path(abstract("transformer", job.config, np.dtype(job.dtype)))
    rule = rules(mesh)

    def parameter(path: str, x: Any) -> Any:
        where = rule("transformer", path, x.shape)
        if job.weights is None or not backbone_of(job.config).rounds(path):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
        values = jax.ShapeDtypeStruct(x.shape, DTYPES[job.weights], sharding=where)
        scale = jax.ShapeDtypeStruct(
            (*x.shape[:-2], x.shape[-1]), np.dtype(np.float32), sharding=of_scale(where, x.ndim)
        )
        return Quantised(values, scale, inputs=job.weights == "w8a8")

    leaves = [parameter(path_of(path), x) for path, x in flat]
    network = arrange(jax.tree_util.tree_unflatten(tree, leaves), platform)
    return network if job.adaptation is None else job.adaptation.attach_shapes(network)


@dataclass(frozen=True)
class _Shapes:
    """Shapes on a mesh: `rows` of a batch lie over "data" where they divide, as `sharding.over_rows` puts them; what is
    `whole` lies on every device."""

    mesh: Mesh

    def rows(self, *shape: int, dtype: DTypeLike = jnp.float32) -> jax.ShapeDtypeStruct:
        spec = P(DATA) if shape[0] % self.mesh.shape[DATA] == 0 else P()
        return jax.ShapeDtypeStruct(shape, np.dtype(dtype), sharding=NamedSharding(self.mesh, spec))

    def whole(self, *shape: int, dtype: DTypeLike = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, np.dtype(dtype), sharding=NamedSharding(self.mesh, P()))


def _text(job: Job, shapes: _Shapes) -> Text:
    rows = job.references + job.images

    def prompts(count: int) -> tuple[Any, Any]:
        txt = shapes.rows(count, job.text_tokens, job.config.joint_attention_dim, dtype=job.dtype)
        return txt, shapes.rows(count, job.config.pooled_projection_dim, dtype=job.dtype)

    guidance = shapes.rows(rows) if job.config.guidance_embeds else None
    own, more = job.config.velocity_channels, job.config.in_channels - job.config.velocity_channels
    channels = shapes.whole(1, job.tokens, more) if more else None
    picture = shapes.whole(1, job.beside, own) if job.beside else None
    negative = prompts(job.images) if job.guided else None
    return Text(*prompts(rows), guidance, negative, channels, picture)  # type: ignore[arg-type]


def _reference(job: Job, shapes: _Shapes) -> Reference:
    r, g, n = job.references, job.images, job.tokens
    placement = Placement(shapes.rows(g, r, n, dtype=jnp.int32), shapes.rows(g, r, n, dtype=bool))  # type: ignore[arg-type]
    trajectory = shapes.whole(job.steps + 1, r, n, job.config.velocity_channels)
    tau = shapes.whole(job.config.blocks) if job.preset.tau_blocks else shapes.whole()
    masks, shares = shapes.whole(r, n, dtype=bool), shapes.whole(r, n) if job.preset.soft else None
    return Reference(trajectory, shapes.whole(job.steps), tau, masks, placement, shares)  # type: ignore[arg-type]


def _conditions(job: Job, text: Text, references: int = 0, positions: jax.Array | None = None) -> Any:
    """The conditions of [references; images], or of the images alone (references = 0); guided, if the job is."""
    start = len(text.txt) - job.images - references
    txt, vec = text.txt[start:], text.vec[start:]
    guidance = None if text.guidance is None else text.guidance[start:]
    if text.negative is not None:
        txt, vec = (jnp.concatenate(pair) for pair in zip((txt, vec), text.negative, strict=True))
    positions = grid_positions(*job.grid) if positions is None else positions
    plain = backbone_of(job.config).conditions(TextEmbedding(txt, vec), guidance, positions)
    if text.channels is not None:
        plain = replace(plain, channels=jnp.broadcast_to(text.channels, (len(txt), *text.channels.shape[1:])))
    if text.picture is not None:
        plain = Accompanied(plain, text.picture, jnp.ones((text.picture.shape[1], 3)))
    return plain if text.negative is None else Guided(plain, jnp.float32(4.0), references)


@dataclass(frozen=True)
class _Sample:
    job: Job

    def __call__(self, model: Any, text: Text, x: jax.Array, times: jax.Array) -> jax.Array:
        job, velocity = self.job, _conditions(self.job, text).bind(model)
        return job.drawn(sampling.sample(velocity, x, times, solver=job.solver, cache=job.threshold))


@dataclass(frozen=True)
class _Personalize:
    job: Job

    def __call__(self, model: Any, text: Text, x: jax.Array, times: jax.Array, reference: Reference) -> jax.Array:
        job, preset = self.job, self.job.preset
        rows, alone = _conditions(job, text, job.references), _conditions(job, text)
        source = replacement_index(reference.placement)
        weight = replacement_weight(preset.parts, preset.blocks, job.config.blocks, reference.shares, source)
        early = Phase(rows if preset.level == "layer" else alone, Routing(source, weight))
        task = Task(
            reference.trajectory,
            reference.eta,
            times,
            reference.tau,
            early,
            self.late(text, reference),
            model,
            preset.level,
            job.solver,
            job.threshold,
            None if preset.reference_time is None or preset.level != "layer" else jnp.float32(preset.reference_time),
        )
        return job.drawn(personalize.sample(task, x))

    def late(self, text: Text, reference: Reference) -> Phase:
        """After tau: the images alone, with the references' tokens in their sequences, or with the references."""
        job, concat = self.job, self.job.preset.concat
        if concat is None:
            return Phase(_conditions(job, text))
        size = context_size(job.masked, job.references * job.tokens)
        if concat == "joined":
            joined = join(reference.masks, job.grid, size)
            length = jnp.broadcast_to(joined.length, job.images)
            alone = _conditions(job, text, positions=joined.positions)
            return Phase(alone, Routing(length=length), joined.tokens)
        routing = context_routing(reference.masks, reference.placement, job.images, job.grid, concat, size)
        return Phase(_conditions(job, text, job.references), routing)
