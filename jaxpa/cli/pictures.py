"""The commands that answer a request with pictures: generate, personalize, inpaint, outpaint, edit."""

from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tyro.conf import OmitArgPrefixes, Suppress, UseAppendAction

from jaxpa.batch.table import read_prompts
from jaxpa.cli.flags import Pad
from jaxpa.cli.picturing import Picturing, Prompt
from jaxpa.errors import JaxpaError
from jaxpa.media.subjects import Place, Subject
from jaxpa.request.groups import UNSET, Editing, Following, Method, Starting, Unset
from jaxpa.request.request import Request
from jaxpa.request.spec import Spec


@dataclass(kw_only=True)
class GenerateCommand(Picturing):
    """Make pictures of a prompt."""

    prompts: Path | None = None
    """A file of prompts, one per line, in place of --prompt (-: stdin; lines that begin with # are skipped). Each line
    makes the pictures that --prompt would, with the line's number in their names."""
    image: Path | None = None
    """A picture to start from, in place of noise alone; see --strength. The new one has its aspect, unless --height and
    --width say otherwise."""
    strength: float | None = None
    """With --image: the share of the steps to run. The picture is mixed with the noise at which those steps start, so 1
    leaves nothing of it. Default: 0.6."""
    control: Path | None = None
    """The picture whose shapes the new one follows (FLUX.1-Canny: white edges on black; FLUX.1-Depth: near is
    white)."""
    edges: bool = False
    """The --control picture is an ordinary one: its edges are found first (`pip install 'jaxpa[edges]'`)."""

    @cached_property
    def lines(self) -> list[tuple[int, str]]:
        """The prompts of the file and the numbers of their lines; stdin is read once."""
        return [] if self.prompts is None else read_prompts(str(self.prompts))

    def texts(self) -> dict[str, Any]:
        if self.prompts is None:
            return super().texts()
        if not self.prompt is self.embedding is self.image_prompt is None:
            raise JaxpaError("--prompts stands in place of --prompt, --embedding and --image-prompt: give one of them")
        return {"prompt": tuple(prompt for _, prompt in self.lines)}

    def words(self) -> dict[str, Any]:
        said = super().words()
        if len(self.lines) > 1:  # prompts take turns, seed after seed
            seeds = np.repeat(np.array(self.sampling.seeds()), len(self.lines))
            said["sampling"] = replace(self.sampling, seed=seeds, num_images=1)
        return said

    def combinations(self, request: Request, spec: Spec) -> list[dict[str, Any]]:
        made = super().combinations(request, spec)
        if not self.lines:
            return made
        return [{"line": self.lines[k % len(self.lines)][0], **own} for k, own in enumerate(made)]

    def inputs(self) -> list[Path]:
        return super().inputs() + ([] if self.prompts is None else [self.prompts])

    def request(self) -> Request:
        if self.strength is not None and self.image is None:
            raise JaxpaError("--strength would have no effect: there is no --image to start from")
        strength = {} if self.strength is None else {"strength": self.strength}
        starting = None if self.image is None else Starting(image=self.image, **strength)
        follow = following(self.control, self.edges)
        return Request(**self.words(), starting=starting, following=follow).with_prompt()


def following(control: Path | None, edges: bool) -> Following | None:
    """What the flags of a control picture ask for."""
    if control is None and edges:
        raise JaxpaError("--edges would have no effect: there is no --control picture to find them in")
    return None if control is None else Following(control=control, edges=edges)


@dataclass(kw_only=True)
class EditCommand(Picturing):
    """Change a picture as the prompt says (FLUX.1-Kontext): "make the car red", "the same cat in the snow"."""

    prompt: Prompt = None
    """What to change."""
    image: Path
    """The picture."""
    figure: bool = True  # type: ignore[misc]
    """Also write OUT-figure.png: the picture and the results."""

    def request(self) -> Request:
        return Request(**self.words(), following=Following(picture=self.image)).with_prompt()


@dataclass(kw_only=True)
class PersonalizeCommand(Picturing):
    """Put the subjects of your pictures into a new one (Personalize Anything, Feng et al. 2025)."""

    subject: UseAppendAction[tuple[Subject, ...]] = ()
    """A reference; repeat the flag for each subject. Its mask is white on the subject (any size of the same aspect); or
    its own transparency; or found by --word, which names the subject (in the --caption, if there is one). --at puts
    the subject's centre, or its box, there, in fractions of the canvas. --caption says what the picture shows. --flip
    mirrors it. In a box it keeps its aspect; --stretch fills the box."""
    scene: Path | None = None
    """A picture of the whole scene; subjects lie over it."""
    place: UseAppendAction[tuple[Place, ...]] = ()
    """Layout: a picture with the last subject here (fractions of the canvas), and one for each further --place."""
    control: Path | None = None
    """A picture whose shapes the new one follows, as in `generate`."""
    edges: bool = False
    """The --control picture is an ordinary one: its edges are found first."""
    method: OmitArgPrefixes[Method] = field(default_factory=Method)
    figure: bool = True  # type: ignore[misc]
    """Also write OUT-figure.png: the inputs, their token masks, the results."""

    def request(self) -> Request:
        scene = None if self.scene is None else Subject(self.scene)
        request = Request(
            **self.words(),
            subjects=self.subject,
            scene=scene,
            places=self.place,
            method=self.method,
            following=following(self.control, self.edges),
        )
        return request.with_prompt().with_references()


@dataclass(frozen=True, kw_only=True)
class Keeping(Method):
    """Personalize Anything, as far as it keeps a part of a picture."""

    coverage: Suppress[float | Unset] = UNSET  # an edit keeps the tokens without a pixel that may change


@dataclass(kw_only=True)
class KeepingCommand(Picturing):
    """What changes a part of a picture and keeps the rest."""

    image: Path
    """The picture."""
    caption: str = ""
    """What the picture shows; the inversion follows it."""
    control: Path | None = None
    """A picture whose shapes the new one follows, as in `generate`."""
    edges: bool = False
    """The --control picture is an ordinary one: its edges are found first."""
    feather: float | None = None
    """Pixels of the picture around what is new over which old and new are blended; kept pixels beyond them come back
    exactly. Default: half a token; 0: all kept pixels come back exactly."""
    method: OmitArgPrefixes[Keeping] = field(default_factory=Keeping)
    figure: bool = True  # type: ignore[misc]
    """Also write OUT-figure.png: the inputs, their token masks, the results."""

    def editing(self) -> Editing:
        raise NotImplementedError

    def request(self) -> Request:
        method = Method(**{each.name: getattr(self.method, each.name) for each in fields(Method)})
        follow = following(self.control, self.edges)
        return Request(**self.words(), method=method, editing=self.editing(), following=follow).with_prompt()


@dataclass(kw_only=True)
class InpaintCommand(KeepingCommand):
    """Draw the masked part of a picture anew."""

    mask: Path
    """White where the picture may change."""
    grow: float = 0.0
    """Pixels of the picture by which the mask is grown first."""

    def editing(self) -> Editing:
        return Editing(image=self.image, mask=self.mask, caption=self.caption, grow=self.grow, feather=self.feather)


@dataclass(kw_only=True)
class OutpaintCommand(KeepingCommand):
    """Continue a picture beyond its sides."""

    pad: Pad
    """Pixels of the picture to add at the top, right, bottom and left; one number for all sides."""

    def editing(self) -> Editing:
        return Editing(image=self.image, pad=self.pad, caption=self.caption, feather=self.feather)
