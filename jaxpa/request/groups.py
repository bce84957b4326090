"""The groups of a request: frozen dataclasses that check what they are given.

Field names are the keywords in Python and the flags on the command line; the texts below them are the help.
"""

import enum
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

import numpy as np

from jaxpa.adapters.spec import Lora, to_loras
from jaxpa.config import Asked, VariantName
from jaxpa.errors import JaxpaError, check_choice, flag, real, text, whole
from jaxpa.media.images import Picture
from jaxpa.presets import MAX_GUIDANCE, PRESETS, Concat, Level, Parts, Path, Preset, Start, switched
from jaxpa.request.spec import MAX_STEPS, Spec
from jaxpa.request.taus import BlockTaus, Tau, check_block_taus, check_tau
from jaxpa.solvers import SOLVERS, Name

MAX_SEED = 2**32 - 1
MAX_IMAGES = 1_000_000
MIN_SHIFT = 1e-3
MAX_CACHE = 1e6


class Unset(enum.Enum):
    """Says nothing: the preset's value stays."""

    UNSET = "unset"


UNSET = Unset.UNSET


Seeds: TypeAlias = int | tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The networks."""

    model: str = "mini"
    """`mini`, a diffusers or converted folder, a single .safetensors or .gguf file, a hub id, or a URL (gs://, s3://)."""
    components: str | None = None
    """A folder or hub id that has the rest, where --model is a single file."""
    variant: VariantName | None = None
    """Which of FLUX.1's sister models it is, where neither its files nor their names say so; text: dev, schnell and
    Krea."""
    redux: str | None = None
    """A folder or hub id of FLUX.1-Redux, which reads the --image-prompt."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the weights; auto: float32 on CPU, bfloat16 on GPU and TPU."""
    weights: Asked | None = None
    """Round the weights of the blocks of the transformer and of T5 to eight bits as they are read: half the memory of
    bfloat16. int8 is the more accurate one. w8a8: int8, and the transformer's activations too, token by token: faster
    on a TPU v5e, less accurate. wide: widen them where the files have eight bits or fewer. Default: fp8 and
    int8 files stay as they are, GGUF is rounded to int8, all others are wide."""
    keep_resident: bool | None = None
    """Keep all networks in memory, instead of loading each for its stage (text, sampling, pictures) and freeing it
    after. Default: if they all fit."""
    lora: tuple[Lora, ...] = ()
    """A LoRA to lay over the networks; repeat the flag for several. Scale 1 is what it was trained for."""
    keep_lora: bool | None = None
    """Keep LoRAs beside the weights, so that others can take their place without loading the networks again, instead of
    merging them into the weights, which costs no time later. Default: beside weights of eight bits, and in a batch
    whose lines differ in LoRAs."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "lora", to_loras(self.lora))


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How every picture is sampled."""

    seed: Seeds = 0
    """Seed of the first picture (the next ones count on), or a seed for each."""
    num_images: int = 1
    """Pictures to make (also spelled --variations). Each has its own seed; the prompt is encoded once for them all."""
    steps: int | None = None
    """Sampling steps."""
    guidance: float | None = None
    """How strongly the prompt is followed."""
    sigmas: tuple[float, ...] | None = None
    """Your own schedule: the flow times at which the steps start, in falling order, from at most 1 (noise). The last
    step ends at 0. They are shifted only if --shift is given."""
    shift: float | None = None
    """The schedule's shift F, in t = F u / (1 + (F - 1) u). Above 1, it spends more steps near noise; at 1, times are
    evenly spaced. By default FLUX.1-dev raises it with the canvas (F = e^mu, 3.16 at 1024 x 1024)."""
    solver: Name = "euler"
    """How a step is made of velocities: by one (euler), by that at either end (heun: two forwards a step), or by one
    and the last step's (ab2). The last two need fewer steps for the same accuracy."""
    cache: float | None = None
    """Lossy: skip the network and reuse its last velocity until its input has changed by this share (TeaCache).
    Typical values are 0.05 to 0.15 (examples/evaluation measures them); 0 skips nothing. It does not work with --solver
    heun."""
    height: int | None = None
    """Height of the canvas in pixels."""
    width: int | None = None
    """Width of the canvas in pixels."""
    negative_prompt: str | None = None
    """What the picture should not show (only for checkpoints that do not embed guidance)."""
    batch_size: int | None = None
    """Pictures that are sampled together; auto: as many as fit in half of the memory."""

    def __post_init__(self) -> None:
        set_ = object.__setattr__  # values of NumPy and JAX become plain ones
        if (isinstance(self.seed, Sequence) and not isinstance(self.seed, bytes)) or getattr(self.seed, "ndim", 0):
            seeds = tuple(whole("seed", each, 0, MAX_SEED) for each in self.seed)  # type: ignore[union-attr]
            if not seeds:
                raise JaxpaError("seed is an empty list: give at least one")
            set_(self, "seed", seeds)
            if self.num_images not in (1, len(seeds)):
                raise JaxpaError(f"{len(seeds)} seeds are given for {self.num_images} images: leave num_images out")
        else:
            set_(self, "seed", whole("seed", self.seed, 0, MAX_SEED))
        set_(self, "num_images", whole("num_images", self.num_images, 1, MAX_IMAGES))
        for name in ("steps", "height", "width", "batch_size"):
            if (value := getattr(self, name)) is not None:
                set_(self, name, whole(name, value, 1, *[MAX_STEPS] * (name == "steps")))
        check_choice("solver", self.solver, SOLVERS, JaxpaError)
        if self.cache is not None:
            set_(self, "cache", real("cache", self.cache, 0, MAX_CACHE))
            if SOLVERS[self.solver].evaluations > 1:
                raise JaxpaError(f"cache skips steps that ask the network once, and {self.solver} asks it more often")
        if self.shift is not None:
            set_(self, "shift", real("shift", self.shift, MIN_SHIFT, 1 / MIN_SHIFT))
        if self.sigmas is not None:
            set_(self, "sigmas", _check_sigmas(self.sigmas, self.steps))
        if self.guidance is not None:
            set_(self, "guidance", real("guidance", self.guidance, 0, MAX_GUIDANCE))
        if self.negative_prompt is not None:
            text("negative_prompt", self.negative_prompt)
        self.seeds(1)

    def seeds(self, prompts: int = 1) -> tuple[int, ...]:
        """The seed of every picture, one at least for each of so many prompts. Raises JaxpaError for fewer."""
        if isinstance(self.seed, tuple):
            if len(self.seed) < prompts:
                raise JaxpaError(
                    f"{len(self.seed)} seeds are given for {prompts} prompts: give each one, or one number"
                )
            return self.seed
        last = self.seed + max(self.num_images, prompts) - 1
        if last > MAX_SEED:
            raise JaxpaError(f"the last picture's seed would be {last}: a seed is {MAX_SEED} at most")
        return tuple(range(self.seed, last + 1))

    def times(self, spec: Spec, grid: tuple[int, int]) -> np.ndarray:
        """The flow times of the schedule, (S + 1,), on a canvas of h x w tokens. Raises JaxpaError."""
        return spec.times(self.steps, grid, self.sigmas, self.shift)


def _check_sigmas(given: Any, steps: int | None) -> tuple[float, ...]:
    """The starts of a schedule's steps, plain numbers. Raises JaxpaError unless they fall from 1 at most, above 0."""
    many = isinstance(given, Iterable) and not isinstance(given, str) and getattr(given, "ndim", 1)
    sigmas = tuple(real("sigmas", each, 0, 1) for each in (given if many else [given]))
    if not 1 <= len(sigmas) <= MAX_STEPS:
        raise JaxpaError(f"sigmas must be 1 to {MAX_STEPS} flow times, not {len(sigmas)}")
    if sigmas[-1] == 0:
        raise JaxpaError("sigmas end at 0 by themselves: leave the last one out")
    if rising := [(a, b) for a, b in itertools.pairwise(sigmas) if a <= b]:
        raise JaxpaError(f"sigmas must fall, and {rising[0][1]:g} follows {rising[0][0]:g}")
    if steps not in (None, len(sigmas)):
        raise JaxpaError(f"steps would have no effect: there are {len(sigmas)} sigmas, a step each. Leave steps out")
    return sigmas


@dataclass(frozen=True, kw_only=True)
class Method:
    """Personalize Anything: a preset, and the switches that differ from it."""

    preset: Literal["official", "paper", "mini"] | Preset | None = None
    """The settings of the official code, of the paper, or those that suit `mini`; the switches below change them."""
    tau: tuple[Tau, ...] = ()
    """Replace tokens while t > tau: a flow time, or a percentage of the steps that remain. A lower tau keeps more of
    the reference. Several values make a picture each."""
    tau_blocks: BlockTaus | Unset = UNSET
    """Blocks with a tau of their own, counted from 0, double blocks first, such as 10-20=0.4."""
    level: Level | Unset = UNSET
    """Replace the features that feed queries, keys and values in every block (layer), or the sampler's own tokens
    (token)."""
    path: Path | Unset = UNSET
    """How the reference becomes noise: along a straight line (line), by the model's own flow (ode), or by RF inversion
    (rf)."""
    start: Start | Unset = UNSET
    """The start noise under the subject: the picture's own (independent), or the reference's inverted noise (moved)."""
    concat: Concat | Unset | None = UNSET
    """Attend to the reference after tau: as a part of each picture's sequence at position zero (joined, the paper's
    form), or to its keys and values at these positions; none: do not."""
    parts: Parts | Unset = UNSET
    """What the reference's features feed: queries, keys and values, or some of them."""
    blocks: tuple[int, int] | Unset | None = UNSET
    """The first and the last block in which they do, from 0, double blocks first; none: all."""
    soft: bool | Unset = UNSET
    """Replace a token only as far as the subject's mask covers it."""
    guidance_inside: float | Unset | None = UNSET
    """Guidance of replaced tokens while t > tau; same: as outside."""
    reference_time: float | Unset | None = UNSET
    """Flow time above which the reference is not read: before, the picture sees it as it is there, and draws no second
    subject beside it; same: the picture's own time, as in the paper."""
    surroundings: str | None = None
    """What is around the subjects, in a prompt without them ("a beach"): the picture begins with it, so that it draws
    no second subject beside one that is small or in a corner, and goes on with the prompt itself."""
    surroundings_time: float | Unset = UNSET
    """Flow time down to which --surroundings stand for the prompt, though not below tau."""
    gamma: float | Unset = UNSET
    """How strongly RF inversion is pulled to its noise, from 0 (the model's own flow) to 1 (a straight line)."""
    eta: float | Unset = UNSET
    """How firmly the reference is held on its path, from 0 to 1."""
    shuffle: float | Unset = UNSET
    """Perturbation: the share of the subject's tokens that change places within windows of 3 x 3 tokens."""
    outline: int | Unset = UNSET
    """Perturbation: the side in tokens (odd) of the square that dilates or erodes the mask at random; 0: neither."""
    coverage: float | Unset = UNSET
    """The share of a token that a mask must cover for the token to belong to the subject."""
    sweeps: int | Unset = UNSET
    """How often each step of an inversion by the model's own flow is repeated, to undo the sampler's step."""
    margin: int | Unset = UNSET
    """Tokens by which the region of moved start noise reaches beyond the subject."""

    def __post_init__(self) -> None:
        if not isinstance(self.preset, Preset | None):
            check_choice("preset", self.preset, PRESETS, JaxpaError)
        many = isinstance(self.tau, Iterable) and not isinstance(self.tau, str) and getattr(self.tau, "ndim", 1)
        object.__setattr__(self, "tau", tuple(check_tau(each) for each in (self.tau if many else [self.tau])))
        if self.tau_blocks is not UNSET:
            object.__setattr__(self, "tau_blocks", check_block_taus(self.tau_blocks))
        for name, value in self.given().items():
            if getattr(value, "ndim", None) == 0:  # NumPy's and JAX's scalars become plain numbers
                object.__setattr__(self, name, value.item())  # type: ignore[union-attr]
            elif isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        if self.surroundings is not None:
            text("surroundings", self.surroundings)
        self.switches("official")

    def given(self) -> dict[str, Any]:
        """The switches that are said, None among them."""
        values = {each.name: getattr(self, each.name, UNSET) for each in fields(Preset) if each.name != "tau"}
        return {name: value for name, value in values.items() if value is not UNSET}

    def said(self) -> list[str]:
        """The names of all that is said."""
        return [each.name for each in fields(self) if getattr(self, each.name) != each.default]

    def switches(self, usual: str) -> Preset:
        """The preset with what is said over it; `usual` is the checkpoint's own. Raises JaxpaError for a bad value."""
        name = usual if self.preset is None else self.preset
        return switched(PRESETS[name] if isinstance(name, str) else name, self.given())

    def check(self, usual: str) -> Preset:
        """`switches`, if the run reads each one that is said. Raises JaxpaError for one that it would not."""
        preset, given = self.switches(usual), self.given()
        for name, read, when in (
            ("gamma", preset.path == "rf", f"path is 'rf', and here it is {preset.path!r}"),
            (
                "eta",
                preset.level == "layer" or preset.concat is not None,
                "references ride along, which they do not at level 'token' without concat",
            ),
            ("sweeps", preset.path == "ode", f"path is 'ode', and here it is {preset.path!r}"),
            ("reference_time", preset.level == "layer", f"level is 'layer', and here it is {preset.level!r}"),
            ("surroundings_time", self.surroundings is not None, "surroundings are given"),
            ("margin", preset.start == "moved", f"start is 'moved', and here it is {preset.start!r}"),
        ):
            if name in given and not read:
                raise JaxpaError(f"{name} would have no effect: it is read only where {when}. Leave it out")
        return preset


@dataclass(frozen=True, kw_only=True)
class Editing:
    """A picture of which a part is kept. Either `mask` says what may change, or `pad` what is added."""

    image: Picture
    """The picture."""
    mask: Picture | None = None
    """White where the picture may change."""
    pad: tuple[int, int, int, int] | None = None
    """Pixels of the picture to add at the top, right, bottom and left."""
    caption: str = ""
    """What the picture shows; the inversion follows it."""
    grow: float = 0.0
    """Pixels of the picture by which the mask is grown first."""
    feather: float | None = None
    """Pixels of the picture around what is new over which old and new are blended; kept pixels beyond them come back
    exactly. Default: half a token; 0: all kept pixels come back exactly."""

    def __post_init__(self) -> None:
        if (self.mask is None) == (self.pad is None):
            raise JaxpaError("an edit needs either a mask (what may change) or a pad (what is added)")
        if self.pad is not None:
            pad = tuple(self.pad) if isinstance(self.pad, Sequence) else (self.pad,)
            if len(pad) != 4:
                raise JaxpaError(f"pad {pad}: give top, right, bottom and left in pixels")
            object.__setattr__(self, "pad", tuple(whole("pad", each) for each in pad))
        text("caption", self.caption)
        object.__setattr__(self, "grow", real("grow", self.grow, 0))
        if self.feather is not None:
            object.__setattr__(self, "feather", real("feather", self.feather, 0))
        if self.grow and self.mask is None:
            raise JaxpaError("grow would have no effect: there is no mask to grow. Leave it out")


@dataclass(frozen=True, kw_only=True)
class Starting:
    """A picture to start from, in place of noise alone."""

    image: Picture
    """The picture; the new one has its aspect, unless height and width say otherwise."""
    strength: float = 0.6
    """The share of the steps that are run, the last ones: they start from the picture, mixed with as much noise as
    belongs to their time. 1: from noise alone."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "strength", real("strength", self.strength, 0, 1))

    def first(self, steps: int) -> int:
        """The step at which the sampling starts. Raises JaxpaError if none remains."""
        first = int(max(steps - steps * self.strength, 0))
        if first >= steps:
            raise JaxpaError(f"strength {self.strength:g} leaves none of the {steps} steps: at least 1 is run above 0")
        return first


@dataclass(frozen=True, kw_only=True)
class Following:
    """A picture that the network itself reads, where the checkpoint is one that does."""

    picture: Picture | None = None
    """The picture that the prompt says how to change (`edit`, FLUX.1-Kontext)."""
    control: Picture | None = None
    """The picture whose shapes the new one follows: edges (FLUX.1-Canny) or depth (FLUX.1-Depth)."""
    edges: bool = False
    """The control picture is an ordinary one, whose edges are found first."""

    def __post_init__(self) -> None:
        if (self.picture is None) == (self.control is None):
            raise JaxpaError("a request follows either a picture to change or a control picture: give one of them")
        object.__setattr__(self, "edges", flag("edges", self.edges))
        if self.edges and self.control is None:
            raise JaxpaError("edges would have no effect: there is no control picture to find them in")
