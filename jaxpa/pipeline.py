"""Prompts and pictures in, pictures out: the one place where the parts are put together.

pipe = jaxpa.load("mini")
pipe.generate("a red car on a beach")
pipe.personalize("a red car on a beach", [jaxpa.Subject("car.png", mask="mask.png", at=(0.3, 0.6))])
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from PIL import Image

from jaxpa.adapters.lay import adapt
from jaxpa.adapters.spec import Loras, to_loras
from jaxpa.attention.observe import SCHEDULE, THRESHOLD, Attention, FoundMask, Look, Search, capture, find_mask
from jaxpa.checkpoint.load import Parts, load_parts, load_stages
from jaxpa.checkpoint.redux import find_redux, load_redux
from jaxpa.checkpoint.source import resolve
from jaxpa.config import Asked, VariantName
from jaxpa.devices.plan import all_stay
from jaxpa.devices.sharding import automatic, rules
from jaxpa.encoders.text import TextEmbedding, Tokenizers
from jaxpa.errors import JaxpaError, flag, quoted
from jaxpa.media import images
from jaxpa.media.edits import MaskedPicture, prepare_edit
from jaxpa.media.images import Picture
from jaxpa.media.subjects import LoadedSubject, References, Subject, has_mask, load_subject
from jaxpa.request.prepare import NotReferences, Pictures, prepare, standing_for
from jaxpa.request.record import check_read
from jaxpa.request.request import Request
from jaxpa.runs import OnStep, Step, sampled
from jaxpa.sampler import Sampler


class Pipeline(Sampler):
    """A loaded checkpoint and what can be made with it.

    Every method is a `Request` in the making: its keywords are the fields of `groups.Sampling` (seed, num_images,
    steps, guidance, height, width, negative_prompt, ...), and where there are references those of `groups.Method`
    (preset, tau, level, path, start, concat, ...). Every method raises JaxpaError for bad input.
    """

    def make(
        self, request: Request, prepared: Pictures | None = None, on_step: OnStep | None = None
    ) -> list[Image.Image]:
        """The pictures of a request: every combination of tau (slowest), seed and place (fastest).

        prepared: what `prepare` has made of the request's pictures (None: it is made here). on_step: hears each step.
        """
        return list(self.stream(request, prepared, on_step))

    def stream(
        self, request: Request, prepared: Pictures | None = None, on_step: OnStep | None = None
    ) -> Iterator[Image.Image]:
        """The pictures of `make` as they come: those of one device batch after the other.

        With references, or where networks take turns in memory, all come at the end. What does not fit the checkpoint
        raises here; what is wrong with a file, when the first picture is asked for.
        """
        _checked(request).with_prompt().check(self.spec)
        return self._streamed(request, prepared, on_step)

    def _streamed(self, request: Request, prepared: Pictures | None, on_step: OnStep | None) -> Iterator[Image.Image]:
        with self.on_devices():
            prepared = self.prepare(request) if prepared is None else prepared
            made = iter(self._made(request, prepared, on_step))
        while True:
            with self.on_devices():  # but not while the caller has a picture
                picture = next(made, None)
            if picture is None:
                return
            yield picture

    def _made(self, request: Request, prepared: Pictures | None, on_step: OnStep | None) -> Iterable[Image.Image]:
        if isinstance(prepared, References):
            return self._personalized(request, prepared, on_step)
        if not isinstance(prepared, MaskedPicture):
            return self._generated(request, prepared, on_step)
        if request.riding(self.spec):
            made = self._personalized(request, prepared.references(self.cell), on_step)
        else:
            made = self._generated(request, prepared, on_step)
        return (self.finished(request, prepared, each) for each in made)

    def finished(self, request: Request, pictures: Pictures | None, made: Image.Image) -> Image.Image:
        """What was drawn, inside of the picture that an edit keeps."""
        if not isinstance(pictures, MaskedPicture):
            return made
        return pictures.paste(made, None if request.editing is None else request.editing.feather, self.cell)

    def prepare(self, request: Request) -> Pictures | None:
        """A request's pictures, masks and places on the canvas; a mask is found by its word. None: it has none."""
        if _checked(request).editing is None and request.subjects:
            request = dataclasses.replace(request, subjects=tuple(self.with_mask(each) for each in request.subjects))
        return prepare(request, self.spec)

    def generate(
        self, prompt: str | Sequence[str] | TextEmbedding, *, on_step: OnStep | None = None, **keywords: Any
    ) -> list[Image.Image]:
        """Pictures of a prompt, or of one prompt each. Image k has the seed `seed + k`, or seed[k].

        prompt: text, or what `encode_text` made of it. An image depends on its own seed alone, whatever the batch.
        image and strength: a picture to start from in place of noise, and the share of the steps that are run from it.
        control: a picture whose shapes it follows, for FLUX.1-Canny and -Depth. image_prompt: a picture whose look it
        takes, by FLUX.1-Redux; the prompt may then be empty.
        """
        return self.make(Request.of(prompt, **keywords), on_step=on_step)

    def edit(
        self,
        image: Picture,
        prompt: str | Sequence[str] | TextEmbedding,
        *,
        on_step: OnStep | None = None,
        **keywords: Any,
    ) -> list[Image.Image]:
        """Change a picture as the prompt says (FLUX.1-Kontext). Of its own size, or nearly, unless height or width say.

        Keywords: those of `groups.Sampling`.
        """
        return self.make(Request.of(prompt, picture=image, **keywords), on_step=on_step)

    def _generated(
        self, request: Request, pictures: NotReferences | None, on_step: OnStep | None
    ) -> Iterator[Image.Image]:
        said = request.sampling
        canvas = (said.height, said.width) if pictures is None else pictures.canvas
        batches = self.sample_generated(request, pictures, self._with_pictures(on_step, canvas))
        if not isinstance(self.parts, Parts):  # where networks take turns, the decoder comes once, and last
            batches = [jnp.concatenate(list(batches))]
        for tokens in batches:
            yield from self.decode(tokens, *canvas, on_step)

    def _with_pictures(self, on_step: OnStep | None, canvas: tuple[int | None, int | None]) -> OnStep | None:
        """An `on_step` whose steps can decode what they take for the pictures."""
        if on_step is None:
            return None

        def hear(step: Step) -> None:
            if (tokens := step.tokens) is not None:
                step = step._replace(picture=lambda k: self.decode(tokens()[k : k + 1], *canvas)[0])
            on_step(step)

        return hear

    # Personalize Anything ------------------------------------------------------------------------------------

    def references(self, subjects: Sequence[Subject], scene: Subject | None = None, **keywords: Any) -> References:
        """Pictures, token masks and placements, as `personalize` takes them: height, width, at, coverage, ..."""
        made = self.prepare(Request.of(subjects=subjects, scene=scene, **places_in(keywords)))
        if not isinstance(made, References):
            raise JaxpaError("nothing to personalise: give at least one subject, or a scene")
        return made

    def personalize(
        self,
        prompt: str | TextEmbedding,
        subjects: Sequence[Subject] | References,
        scene: Subject | None = None,
        *,
        on_step: OnStep | None = None,
        **keywords: Any,
    ) -> list[Image.Image]:
        """Pictures of a prompt with the subjects of references in them (Feng et al. 2025).

        tau, seed and at (placements of the last subject) may be lists: the result then has every combination, tau
        slowest, placement fastest, through one compiled program.
        """
        if isinstance(subjects, References):
            said = _beside_references(subjects, self.cell, {"scene": scene, **keywords})
            return self.make(Request.of(prompt, **standing_for(subjects), **said), subjects, on_step)
        keywords = places_in(keywords)
        request = Request.of(prompt, subjects=subjects, scene=scene, **keywords)
        return self.make(request.with_references(), on_step=on_step)

    def _personalized(self, request: Request, references: References, on_step: OnStep | None) -> list[Image.Image]:
        canvas = references.grid[0] * self.cell, references.grid[1] * self.cell
        tokens = self.sample_personalized(request, references, self._with_pictures(on_step, canvas))
        return self.decode(tokens, *canvas, on_step)

    # Editing -------------------------------------------------------------------------------------------------

    def inpaint(
        self,
        image: Picture,
        mask: Picture,
        prompt: str | TextEmbedding,
        *,
        on_step: OnStep | None = None,
        **keywords: Any,
    ) -> list[Image.Image]:
        """Draw the masked part of a picture anew (Section 3.4: what is kept replaces), at the picture's own size.

        mask is white where the picture may change; the rest comes back exactly, but for the pixels that are blended.
        Further keywords: those of `groups.Editing` (caption, feather, grow); height and width of the canvas on which
        the picture is shown to the network (None: `Spec.edit_canvas`).
        """
        return self.make(Request.of(prompt, image=image, mask=mask, **keywords), on_step=on_step)

    def outpaint(
        self,
        image: Picture,
        prompt: str | TextEmbedding,
        pad: Sequence[int],
        *,
        on_step: OnStep | None = None,
        **keywords: Any,
    ) -> list[Image.Image]:
        """Continue a picture beyond its sides: pad (top, right, bottom, left) in its own pixels. Else as `inpaint`."""
        return self.make(Request.of(prompt, image=image, pad=pad, **keywords), on_step=on_step)

    def canvas(self, size: tuple[int, int], height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """The canvas (height, width) for a picture of `size` (W, H): its aspect, the checkpoint's area."""
        return self.spec.canvas(size, height, width)

    def reconstruct(
        self, image: Picture, *, caption: str = "", on_step: OnStep | None = None, **keywords: Any
    ) -> tuple[Image.Image, jax.Array]:
        """Invert a picture and sample it back: (picture, noise (1, N, C)). What is lost is the inversion's error.

        Further keywords: steps, sigmas, shift, solver, height and width.
        """
        request = Request.of(caption, **keywords)
        check_read(request, (*SCHEDULE, "solver"), "reconstruct")
        sampling = request.sampling
        picture = images.read_image(image)
        edit = prepare_edit(picture, None, self.canvas(picture.size, sampling.height, sampling.width), caption)
        references = edit.references(self.cell)
        times = sampling.times(self.spec, references.grid)
        with self.on_devices():
            noise = self.trajectory(references, self.preset(path="ode"), times, on_step, sampling.solver)[0]
            text = self.encode_text([caption])
            tokens = sampled(self.guided(text, references.grid, 1.0, None), noise, times, on_step, sampling.solver)
            return self.decode(tokens, edit.height, edit.width)[0], noise

    # Looking inside ------------------------------------------------------------------------------------------

    def attention(
        self,
        prompt: str,
        image: Picture | None = None,
        *,
        at: Sequence[int] | None = None,
        blocks: Sequence[int] | None = None,
        heads: bool = False,
        **keywords: Any,
    ) -> Attention:
        """Attention maps (S, L, M + N, M + N) of a generation, or of the inversion of `image` with its caption.

        at: which steps of the schedule, 0 the noisiest; blocks: which, double blocks first; None: all (a map of 4608
        tokens is 81 MiB: choose). heads: each apart, (S, L, H, ...), instead of their mean. `.quadrants` takes the
        maps apart. The run that is looked at is an untouched one. Further keywords: those of `groups.Sampling` for one
        picture; of an inversion, steps, sigmas, shift, height and width.
        """
        with self.on_devices():
            return capture(self, Request.of(prompt, **keywords), image, Look(at, blocks, heads))

    def find_mask(
        self, image: Picture, word: str, caption: str | None = None, *, threshold: float = THRESHOLD, **keywords: Any
    ) -> FoundMask:
        """Where a picture shows what a word names, from attention: `.soft` (h, w), `.tokens` (N,), `.pixels(size)`.

        caption: what the picture shows; the word must stand in it (None: "a picture of a" word). threshold: of the
        map's range. Further keywords: steps, sigmas and shift; height and width of the canvas (None: the picture's
        aspect).
        """
        with self.on_devices():
            return find_mask(self, image, Search(word, caption, threshold), Request.of(**keywords))

    def with_mask(self, subject: Subject) -> LoadedSubject:
        """The subject, read, with its mask found by its word if it has none. Raises JaxpaError without either."""
        subject = load_subject(subject)
        if has_mask(subject):
            return subject
        found = self.find_mask(subject.image, subject.word, subject.caption or None)
        return dataclasses.replace(subject, mask=found.pixels(subject.image.size).astype(np.float32))


def _checked(request: Any) -> Request:
    if isinstance(request, Request):
        return request
    raise JaxpaError(f"what is asked for must be a jaxpa.request.request.Request, not {quoted(request)}")


def _read_dtype(dtype: Any) -> np.dtype:
    """A type that networks can have. Raises JaxpaError for others."""
    try:
        found = np.dtype(dtype)
    except (TypeError, ValueError):
        found = np.dtype(bool)
    if not jnp.issubdtype(found, jnp.floating) or found.itemsize < 2:
        raise JaxpaError(f"networks are of dtype float32 or bfloat16, not {quoted(dtype)}")
    return found


def _beside_references(made: References, cell: int, said: dict[str, Any]) -> dict[str, Any]:
    """Keywords that go with references that are made, and their canvas. Raises JaxpaError for what was decided then."""
    decided = {name: said.pop(name, None) for name in ("scene", "at", "places", "coverage")}
    if unread := [name for name, value in decided.items() if value is not None]:
        raise JaxpaError(f"{unread[0]} would have no effect on references that are made: give it to `references`")
    for name, side in zip(("height", "width"), made.grid, strict=True):
        if said.get(name) not in (None, side * cell):
            raise JaxpaError(f"the references are made for {name} {side * cell}, not {quoted(said[name])}")
        said[name] = side * cell
    return said


def places_in(keywords: dict[str, Any]) -> dict[str, Any]:
    """`at`, as Python says it, is the layout of a request."""
    at = keywords.pop("at", None)
    return keywords if at is None else {**keywords, "places": at}


def load(
    source: str | Path = "mini",
    dtype: DTypeLike | None = None,
    mesh: Mesh | None = None,
    *,
    components: str | Path | None = None,
    weights: Asked | None = None,
    resident: bool | None = None,
    variant: VariantName | None = None,
    loras: Loras = (),
    keep_loras: bool | None = None,
    redux: str | Path | None = None,
    on_step: OnStep | None = None,
) -> Pipeline:
    """Load a checkpoint.

    source: `mini` (the embedded one), a diffusers or converted folder, a single .safetensors or .gguf file (then
    `components` names where the rest comes from), a hub id, or a URL of fsspec; dtype: of all networks (None: float32
    on CPU, bfloat16 elsewhere); mesh: devices to spread the networks and the rows of a batch over, with axes "data" and
    "model" (`jaxpa.devices.sharding.make_mesh`); weights: "int8" or "fp8" rounds the blocks of the transformer and of
    T5 to eight bits as they are read (`jaxpa.quantised`), "w8a8" is int8 with the transformer's activations rounded,
    too, "wide" widens those of fp8 and GGUF files; resident: whether all networks stay in memory, or each is loaded for
    its stage and freed after: text, sampling, pictures (None: they stay if they all fit); variant: which of FLUX.1's
    sister models it is (`jaxpa.backbones.variants`; None: as its files say); loras: files, or pairs of a file and a
    scale; keep_loras: keep them beside the weights, where `with_loras` exchanges them, instead of merging them into the
    weights (None: beside weights of eight bits); redux: a folder or hub id of FLUX.1-Redux, for image prompts; on_step:
    hears after every network how many bytes are read.
    Raises CheckpointError with everything that is wrong with the files, JaxpaError for a bad argument.
    """
    mesh = None if mesh is None else automatic(mesh)
    dtype = None if dtype is None else _read_dtype(dtype)
    for name, value in {"resident": resident, "keep_loras": keep_loras}.items():
        if value is not None:
            flag(name, value)
    found = resolve(source, components, variant=variant)
    found = adapt(found, loras := to_loras(loras), keep_loras, weights)
    beside = None if redux is None else find_redux(redux)
    if beside is not None:
        found = dataclasses.replace(found, redux=beside)
    sharding = None if mesh is None else rules(mesh)
    if resident is None:
        resident = all_stay(found, dtype, weights, 1 if mesh is None else mesh.shape["model"])
    if resident:
        hear = None if on_step is None else lambda done, total: on_step(Step("load", done, total))
        parts = load_parts(found, dtype=dtype, sharding=sharding, weights=weights, progress=hear)
    else:
        parts = load_stages(found, dtype, sharding, weights)
    clip, t5 = (parts.tokenizers[name].parent for name in ("tokenizer", "tokenizer_2"))
    prior = None if beside is None else load_redux(beside, found.config.transformer.joint_attention_dim, dtype)
    return Pipeline(parts, Tokenizers.load(clip, t5), mesh, () if parts.bare else loras, prior)
