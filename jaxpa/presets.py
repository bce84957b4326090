"""The method's switches, and the settings of its sources."""

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, get_args

from jaxpa import checks
from jaxpa.errors import JaxpaError, check_choice, quoted, whole
from jaxpa.schedule import Steps

Level = Literal["layer", "token"]
Positions = Literal["zero", "target", "original", "shifted"]
Concat = Literal["joined", Positions]
Parts = Literal["qkv", "qk", "qv", "kv", "q", "k", "v"]
Path = Literal["line", "ode", "rf"]
Start = Literal["independent", "moved"]

# Every switch that is a word, and the words that it knows.
_WORDS: dict[str, tuple[str | None, ...]] = {
    "level": get_args(Level),
    "path": get_args(Path),
    "start": get_args(Start),
    "concat": (None, *get_args(Concat)),
    "parts": get_args(Parts),
}


@dataclass(frozen=True)
class BlockTau:
    """A tau of the blocks `first` to `last`, both included, double blocks first."""

    first: int
    last: int
    tau: float | Steps


MAX_GUIDANCE = 1e6  # far beyond any use; float32 overflows at 3e38
MOST = {"margin": 1024, "sweeps": 1000, "outline": 255}  # margin and outline in tokens; sweeps: repetitions of a step
EDIT = Steps(0.1)  # Section 3.4: what is kept is held for 90% of the steps


@dataclass(frozen=True)
class Preset:
    """The method's switches. Each is independent of the others; `PRESETS` names the settings of the sources."""

    tau: float | Steps
    tau_blocks: tuple[BlockTau, ...] = ()
    """Blocks whose tau is another one. The references ride along until the lowest."""
    level: Level = "layer"
    path: Path = "line"
    """The reference's way: a straight line to noise, the model's own flow backwards, or RF inversion by `gamma`."""
    start: Start = "independent"
    """Noise of the target region: the image's own, or the reference's inverted noise, moved with its tokens."""
    concat: Concat | None = None
    """How the reference is attended to after tau; None: not at all. Two forms, whose pictures differ:

    "joined": its tokens join each image's sequence at position (0, 0), as queries, keys and values with a stream of
    their own: the paper's [X; X_ref; text] (Section 3.4). No reference row is asked after tau.

    "zero", "target", "original", "shifted": the reference rows ride along, and give the images keys and values at
    position (0, 0), at that of the cells that they are put on, at their own, or at their own moved by the grid's width.
    This is what the official code does ("target" where it is switched on); Section 3.2 compares the other three."""
    parts: Parts = "qkv"
    """What the reference's features feed while t > tau: any of queries, keys and values."""
    blocks: tuple[int, int] | None = None
    """The first and the last block in which they do, counted from 0, double blocks first; None: all."""
    soft: bool = False
    """Whether a token is replaced only as far as the subject's mask covers it (the moved token's own share)."""
    guidance_inside: float | None = None
    """Guidance of replaced tokens while t > tau; None: as outside. Where the checkpoint embeds its guidance, this is
    what the reference's features are made with."""
    reference_time: float | None = None
    """Flow time above which the reference is not read (level "layer"): images at a higher one are given its features
    from there, so that they see from the first step what is in the cells, and draw no second one beside it. Until then
    the reference is held on its path. Not in the paper; None: as there, it is read at the images' own time."""
    surroundings_time: float = 0.8
    """Flow time above which, and above tau, a request's `surroundings` are the images' text in place of its prompt. Not
    in the paper."""
    gamma: float = 1.0
    """How strongly RF inversion is pulled to its noise, from 0 (the model's own flow) to 1 (a straight line)."""
    eta: float = 1.0
    """How firmly the reference is held on its path, from 0 (the model's own flow) to 1."""
    shuffle: float = 0.0
    """Share of the subject's tokens that change places within windows of 3 x 3 (Section 3.4)."""
    outline: int = 0
    """Side in tokens, odd, of the square that dilates or erodes the subject's mask at random (Section 3.4); 0: none."""
    coverage: float = 0.5
    """A token belongs to a subject if its mask covers at least this share of the token."""
    sweeps: int = 0
    """How often each step of an ODE inversion is repeated to undo the sampler's step (`inversion.invert`)."""
    margin: int = 0
    """Cells by which the region of moved start noise reaches beyond the subject."""
    inpaint_tau: float | Steps = EDIT
    outpaint_tau: float | Steps = EDIT

    def __post_init__(self) -> None:
        for name, words in _WORDS.items():
            check_choice(name, getattr(self, name), words, JaxpaError)
        if not isinstance(self.soft, bool):
            raise JaxpaError(f"soft must be true or false, not {quoted(self.soft)}")
        if self.level == "token" and (self.parts != "qkv" or self.blocks is not None or self.tau_blocks):
            raise JaxpaError(
                'level "token" replaces whole tokens: parts, blocks and tau_blocks belong to level "layer"'
            )
        try:
            if self.blocks is not None:
                checks.block_range("blocks", self.blocks)
                object.__setattr__(self, "blocks", tuple(self.blocks))
            for name in ("tau", "inpaint_tau", "outpaint_tau"):
                value = getattr(self, name)
                checks.number(name, value.share if isinstance(value, Steps) else value, 0, 1)
            self._check_tau_blocks()
            for name in ("gamma", "eta", "shuffle", "coverage", "surroundings_time"):
                checks.number(name, getattr(self, name), 0, 1)
            if self.reference_time is not None:
                checks.number("reference_time", self.reference_time, 0, 1)
            if self.guidance_inside is not None:
                checks.number("guidance_inside", self.guidance_inside, 0, MAX_GUIDANCE)
            for name, most in MOST.items():
                whole(name, getattr(self, name), 0, most)
            if self.outline % 2 == 0 < self.outline:
                raise ValueError(f"outline must be an odd number of tokens, or 0, not {self.outline}")
        except ValueError as error:
            raise JaxpaError(str(error)) from None

    def _check_tau_blocks(self) -> None:
        if not isinstance(self.tau_blocks, tuple):
            raise ValueError(f"tau_blocks must be a tuple of BlockTau, not {self.tau_blocks!r}")
        for own in self.tau_blocks:
            if not isinstance(own, BlockTau):
                raise ValueError(f"tau_blocks must be a tuple of BlockTau, not of {own!r}")
            checks.block_range("tau_blocks", (own.first, own.last))
            checks.number("tau_blocks", own.tau.share if isinstance(own.tau, Steps) else own.tau, 0, 1)
        for before, own in pairwise(sorted(self.tau_blocks, key=lambda own: own.first)):
            if own.first <= before.last:
                raise ValueError(f"tau_blocks give block {own.first} two values")


PRESETS = {
    # The notebooks of the official repository: 28 steps, gamma 1, eta 1, no concatenation.
    "official": Preset(tau=0.6, path="rf", inpaint_tau=0.45, outpaint_tau=0.7),
    # Sections 3.4 and 4.1: tau at 80% of the steps, perturbation, then the sequence [X; X_ref; text].
    "paper": Preset(tau=Steps(0.8), concat="joined", shuffle=1.0, outline=5),
    # A small grid needs more: the true flow of the reference, its noise under the subject, and that the images know
    # from the first step that the subject is there.
    "mini": Preset(
        tau=0.5, path="ode", start="moved", guidance_inside=1.0, reference_time=0.62, coverage=0.1, margin=1
    ),
}


def asks_network(preset: Preset) -> bool:
    """Whether the reference's way to noise asks the network."""
    return preset.path == "ode" or (preset.path == "rf" and preset.gamma < 1)


def switched(preset: Preset, given: dict[str, Any]) -> Preset:
    """A preset with other values of some switches. Raises JaxpaError for a bad one."""
    try:
        return _switched(preset, **given)
    except TypeError:  # a value without a hash
        return replace(preset, **given)


@lru_cache(maxsize=256, typed=True)  # a request asks several times, and most lines of a batch ask for the same
def _switched(preset: Preset, **given: Any) -> Preset:
    return replace(preset, **given)
