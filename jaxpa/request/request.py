"""What is asked for, as one value: Python, the command line, `plan`, `evaluate` and `batch` all make a `Request`.

    Request
      prompt | embedding          what the picture shows: text, or text that has been encoded before
      sampling   Sampling         seeds, steps, guidance, canvas                      every picture
      method     Method           preset, tau and the switches over it                pictures with references
      subjects, scene, places     the references, and where they go                   personalize
      editing    Editing          a picture of which a part is kept                   inpaint, outpaint
      starting   Starting         a picture to start from, in place of noise alone    generate
      following  Following        a picture that the network itself reads             edit; control pictures

    Checkpoint                    which networks it is asked of; a request itself does not depend on them

A group is a frozen dataclass whose fields have the names of the keywords in Python and of the flags on the command
line, and whose docstrings are the help. What is wrong with a value is said when it is made; what does not fit a
checkpoint is said by `Request.check`, for which headers suffice. Two values say nothing: None, where a checkpoint's own
setting steps in; and `UNSET` in `Method`, where None is a choice that switches something off.

`record` turns requests into JSON and back.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, Literal, Self, TypeVar

import numpy as np

from jaxpa.box import Box
from jaxpa.encoders.text import TextEmbedding
from jaxpa.errors import JaxpaError, did_you_mean, quoted, several, text, warn
from jaxpa.media.images import Picture
from jaxpa.media.places import Place, to_place
from jaxpa.media.subjects import Subject
from jaxpa.presets import Preset, asks_network
from jaxpa.request.groups import Editing, Following, Method, Sampling, Starting
from jaxpa.request.spec import Spec
from jaxpa.schedule import Steps

GROUPS: dict[str, type] = {
    "sampling": Sampling,
    "method": Method,
    "editing": Editing,
    "starting": Starting,
    "following": Following,
}
# Section 3.4: what is kept is not varied; and it starts from its own noise.
EDITS: dict[str, Any] = {"shuffle": 0.0, "outline": 0, "start": "moved", "margin": 0}


def home_of(word: str, words: Iterable[str]) -> str | None:
    """The group of a flat keyword among others; None: no group has it.

    An `image` of which nothing is kept is one to start from.
    """
    kept = {each.name for each in fields(Editing)} - {"image"}
    if word == "image" and not kept & set(words):
        return "starting"
    return next((name for name, group in GROUPS.items() if word in {each.name for each in fields(group)}), None)


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request; see the module."""

    prompt: str | tuple[str, ...] | None = None
    """What the picture shows; several: pictures of each in turn (`generate`). An empty one says that it shows nothing
    in particular; none, that there is an `embedding` or an `image_prompt`, or that nothing is drawn (`plan`)."""
    embedding: str | os.PathLike[str] | TextEmbedding | None = None
    """Encoded prompts in place of `prompt`, or the file that `TextEmbedding.save` wrote."""
    sampling: Sampling = field(default_factory=Sampling)
    method: Method = field(default_factory=Method)
    subjects: tuple[Subject, ...] = ()
    """The references; a later one lies over an earlier one."""
    scene: Subject | None = None
    """A picture of the whole scene; subjects lie over it."""
    places: tuple[Place | None, ...] = ()
    """Layout: a picture with the last subject at each of these places (None: where the subject itself says)."""
    editing: Editing | None = None
    starting: Starting | None = None
    following: Following | None = None
    image_prompt: Picture | None = None
    """A picture whose look and content the new one takes (FLUX.1-Redux), beside a prompt or without one."""

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str | None):
            many = isinstance(self.prompt, Iterable) and getattr(self.prompt, "ndim", 1)
            prompts = tuple(self.prompt) if many else (self.prompt,)
            if bad := [each for each in prompts if not isinstance(each, str)]:
                raise JaxpaError(f"a prompt must be a string, not {quoted(bad[0])}")
            if not prompts:
                raise JaxpaError("prompt is an empty list: give at least one")
            object.__setattr__(self, "prompt", prompts)
        for each in self.prompts:
            text("the prompt", each)
        if self.prompt is not None and self.embedding is not None:
            raise JaxpaError("give a prompt or an embedding, not both: an embedding is an encoded prompt")
        object.__setattr__(self, "subjects", several("subjects", self.subjects, Subject))
        object.__setattr__(self, "places", _to_places(self.places))
        for name, kind in {**GROUPS, "scene": Subject}.items():
            group = getattr(self, name)
            if not (isinstance(group, kind) or (group is None and name not in ("sampling", "method"))):
                raise JaxpaError(f"{name} must be a {kind.__name__}, not {quoted(group)}")
        if self.editing is not None and (self.subjects or self.scene):
            raise JaxpaError("a request either edits a picture or brings subjects: make two")
        if self.starting is not None and self.verb != "generate":
            raise JaxpaError(f"{self.verb} has no strength: only a picture of a prompt alone starts from another one")
        if self.verb == "edit" and self.references:
            raise JaxpaError("a request either changes a picture as the prompt says, or keeps parts of one: make two")
        if self.verb not in ("generate", "edit") and not isinstance(self.prompt, str | None):
            raise JaxpaError(f"{self.verb} takes one prompt, not a list")
        if any(isinstance(place, Box) for place in self.places) and len(self.places) > 1:
            raise JaxpaError("several places share one reference: give centres X,Y; a box goes to the subject's --at")
        for k, subject in enumerate(self.subjects):
            places = self.places if self.places and k == len(self.subjects) - 1 else (subject.at,)
            if subject.stretch and not any(isinstance(place, Box) for place in places):
                raise JaxpaError(
                    f"stretch would have no effect: {subject.name} has no box to fill, left, top, right, bottom"
                )
        if self.places and not self.subjects:
            raise JaxpaError("places would have no effect: there is no subject to put there")
        self.sampling.seeds(self.prompt_count)  # one for each at least

    @classmethod
    def of(cls, prompt: Any = None, **words: Any) -> Self:
        """A request from flat keywords, each of which goes to the group that has it: steps=4, level="token".

        A prompt may be a `TextEmbedding`. Raises JaxpaError for a keyword that no group has, with the nearest one.
        """
        if isinstance(prompt, TextEmbedding):
            words["embedding"], prompt = prompt, None
        groups: dict[str, dict[str, Any]] = {name: {} for name in GROUPS}
        own, given = {each.name for each in fields(cls)}, set(words)
        for word in [word for word in words if word not in own]:
            home = home_of(word, given)
            if home is None:
                known = sorted(own | {f.name for group in GROUPS.values() for f in fields(group)})
                raise JaxpaError(f"there is no setting {word!r}{did_you_mean(word, known)}")
            groups[home][word] = words.pop(word)
        for name, values in groups.items():
            needed = [f.name for f in fields(GROUPS[name]) if f.default is MISSING and f.name not in values]
            if values and needed:
                raise JaxpaError(f"{next(iter(values))} would have no effect without {needed[0]}")
        made = {name: GROUPS[name](**values) for name, values in groups.items() if values}
        if both := made.keys() & words.keys():
            raise JaxpaError(f"{both.pop()} is given as a whole and in parts: give one of the two")
        return cls(prompt=prompt, **made, **words)

    @property
    def verb(self) -> Literal["generate", "personalize", "inpaint", "outpaint", "edit"]:
        """What the request asks for."""
        if self.following is not None and self.following.picture is not None:
            return "edit"
        if self.editing is not None:
            return "outpaint" if self.editing.mask is None else "inpaint"
        return "personalize" if self.subjects or self.scene is not None else "generate"

    def with_references(self) -> Self:
        """The request itself, if it asks for `personalize`. Raises JaxpaError for one that brings no subject."""
        if self.verb != "personalize":
            raise JaxpaError("nothing to personalise: give at least one subject, or a scene")
        return self

    @property
    def shows_something(self) -> bool:
        """Whether anything says what the picture shows."""
        return not self.prompt is self.embedding is self.image_prompt is None

    def with_prompt(self) -> Self:
        """The request itself, if it says what the picture shows. Raises JaxpaError for one that does not."""
        if not self.shows_something:
            raise JaxpaError(
                "give a --prompt: what the picture shows (or an --embedding FILE, or an --image-prompt PICTURE)"
            )
        return self

    @property
    def reads_text(self) -> bool:
        """Whether there is a prompt to encode: an image prompt needs none."""
        return self.embedding is None and (self.image_prompt is None or any(self.prompts))

    @property
    def prompts(self) -> tuple[str, ...]:
        """One at least, which is empty where there is none."""
        return self.prompt if isinstance(self.prompt, tuple) else (self.prompt or "",)

    @property
    def prompt_count(self) -> int:
        """How many prompts take turns; those of a file of embeddings count as one until it is read."""
        return len(self.embedding) if isinstance(self.embedding, TextEmbedding) else len(self.prompts)

    @property
    def references(self) -> int:
        """How many pictures are references, or kept in part."""
        return len(self.subjects) + (self.scene is not None) + (self.editing is not None)

    def riding(self, spec: Spec) -> int:
        """How many references ride along: none where the network itself reads the picture that is kept in part."""
        return 0 if spec.variant.reads == "fill" else self.references

    def guidance(self, spec: Spec) -> float:
        """The guidance of its pictures: what it says, or what this checkpoint takes with references or without."""
        return spec.guidance(self.sampling.guidance, with_references=self.riding(spec) > 0)

    def guided(self, spec: Spec) -> bool:
        """Whether guidance is classifier-free: two forwards of every image in each step."""
        return not spec.embeds_guidance and self.guidance(spec) > 1

    def switches(self, spec: Spec) -> Preset:
        """The method's switches on this checkpoint, as the run takes them; an edit varies nothing unless told."""
        preset = self.method.switches(spec.settings.preset)
        if self.editing is None:
            return preset
        return replace(preset, **{name: value for name, value in EDITS.items() if name not in self.method.given()})

    def taus(self, spec: Spec) -> tuple[float | Steps, ...]:
        """Every tau that is asked for; what the preset takes for such a request, if none is."""
        if self.references and not self.riding(spec):
            return ()
        preset = self.switches(spec)
        usual = {"inpaint": preset.inpaint_tau, "outpaint": preset.outpaint_tau}
        return self.method.tau or (usual.get(self.verb, preset.tau),)

    def times(self, spec: Spec, grid: tuple[int, int]) -> np.ndarray:
        """The flow times of the steps that are run, (S + 1,), on a canvas of h x w tokens. Raises JaxpaError."""
        times = self.sampling.times(spec, grid)
        return times if self.starting is None else times[self.starting.first(len(times) - 1) :]

    def check(self, spec: Spec) -> None:
        """Raise JaxpaError for what does not fit a checkpoint, as far as its headers and the pictures' names tell.

        Warns of words that it has never seen.
        """
        self._check_variant(spec)
        own = self.editing is None and self.following is None and self.starting is None
        if own or self.sampling.height or self.sampling.width:
            spec.grid(self.sampling.height, self.sampling.width)
        guided = self.guided(spec)
        if self.sampling.negative_prompt and not guided:
            raise JaxpaError(
                "this checkpoint embeds its guidance: a negative prompt would have no effect"
                if spec.embeds_guidance
                else f"at guidance {self.guidance(spec):g} a negative prompt would have no effect: set guidance above 1"
            )
        if self.riding(spec):
            switches = self.method.check(spec.settings.preset)
            said = [("tau_blocks", (own.first, own.last)) for own in switches.tau_blocks]
            for name, (first, last) in said + ([("blocks", switches.blocks)] if switches.blocks else []):
                if last >= spec.blocks:
                    raise JaxpaError(f"{name} must lie in 0 to {spec.blocks - 1} here, not {first}-{last}")
            read = guided or (spec.embeds_guidance and switches.level == "layer")
            if self.method.given().get("guidance_inside") is not None and not read:
                raise JaxpaError(
                    "guidance_inside would have no effect: it is read where guidance is classifier-free and above 1, "
                    "or where level is 'layer' and the checkpoint embeds guidance. Leave it out"
                )
            if self.sampling.solver != "euler" and "sweeps" in self.method.given():
                raise JaxpaError("sweeps would have no effect: only Euler's steps are repeated. Leave them out")
        if not self.references and (unread := self.method.said()):
            raise JaxpaError(f"{unread[0]} would have no effect: there is no subject to put anywhere. Leave it out")
        if self.image_prompt is not None:
            if self.riding(spec):
                raise JaxpaError(f"{self.verb} by token replacement reads no image prompt: the references are pictures")
            if guided:
                raise JaxpaError("an image prompt has nothing to be guided away from: set guidance to 1 here")
        if self.editing is not None and "coverage" in self.method.given():
            raise JaxpaError("coverage would have no effect: an edit keeps the tokens without a pixel that may change")
        captions = [each.caption for each in (*self.subjects, self.scene, self.editing) if each is not None]
        if unknown := spec.unknown_words(" ".join((*self.prompts, *captions, self.method.surroundings or ""))):
            warn(f"this checkpoint has never seen {', '.join(unknown)}")

    def _check_variant(self, spec: Spec) -> None:
        """Raise JaxpaError where this is not what the checkpoint does, or where it lacks the picture that it reads."""
        title, reads = spec.variant.title, spec.variant.reads
        if self.verb == "edit" and reads != "sequence":
            raise JaxpaError(
                f"edit asks for FLUX.1-Kontext, and this is {title}; where files and names do not say that it is "
                "Kontext, --variant kontext does"
            )
        if reads == "fill":
            if self.editing is None:
                raise JaxpaError(f"{self.verb} has nothing to fill, and {title} fills in: use inpaint or outpaint")
            if said := [*self.method.said(), *["caption"] * bool(self.editing.caption)]:
                raise JaxpaError(
                    f"{said[0]} would have no effect: {title} reads what is kept itself, and nothing is replaced. "
                    "Leave it out"
                )
        control = self.following is not None and self.following.control is not None
        if control and reads != "control":
            raise JaxpaError(f"a control picture would have no effect: {title} reads none (FLUX.1-Canny and -Depth do)")
        if reads == "control":
            if self.following is not None and self.following.edges and spec.variant.name == "depth":
                raise JaxpaError(f"{title} follows depth, not edges: leave edges out, and give a picture of the depth")
            if not control:
                raise JaxpaError(f"{title} follows a control picture: give one with --control")
            preset = self.switches(spec)
            if self.references and (preset.level != "token" or preset.concat or asks_network(preset)):
                raise JaxpaError(
                    "references have no control picture of their own, so the network cannot be asked about them: say "
                    "--level token --path line --concat none"
                )


def _to_places(given: Any) -> tuple[Place | None, ...]:
    """The places of a layout. Raises JaxpaError."""
    if not isinstance(given, Iterable) or not getattr(given, "ndim", 1):
        raise JaxpaError(f"places must be a list of centres (x, y), not {quoted(given)}")
    return tuple(to_place(place, "the last subject") for place in given)


# Which values name files; pictures, masks and encoded prompts in memory are none.
FILES: dict[type, tuple[str, ...]] = {
    Request: ("embedding", "image_prompt"),
    Subject: ("image", "mask"),
    Editing: ("image", "mask"),
    Starting: ("image",),
    Following: ("picture", "control"),
}
Named = TypeVar("Named")


def rename_files(value: Named, name: Callable[[str], str]) -> Named:
    """A request, or a part of one, with another name for each of its files."""
    if isinstance(value, tuple):
        return tuple(rename_files(each, name) for each in value)  # type: ignore[return-value]
    kind = next((kind for kind in FILES if isinstance(value, kind)), None)
    if kind is None:
        return value
    inside: dict[str, Any] = {each.name: getattr(value, each.name) for each in fields(kind)}
    named = {
        key: name(os.fspath(each))
        for key, each in inside.items()
        if key in FILES[kind] and isinstance(each, str | os.PathLike)
    }
    changed = {key: new for key, each in inside.items() if (new := rename_files(each, name)) is not each} | named
    return replace(value, **changed)  # type: ignore[type-var]


def files_of(request: Request) -> list[str]:
    """The files that a request names."""
    found: list[str] = []

    def hear(file: str) -> str:
        found.append(file)
        return file

    rename_files(request, hear)
    return found
