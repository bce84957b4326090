"""Prompts and pictures in, pictures out: the one place where the parts are put together.

pipe = jaxpa.load("mini")
pipe.generate("a red car on a beach")
pipe.personalize("a red car on a beach", [jaxpa.Subject("car.png", mask="mask.png", at=(0.3, 0.6))])
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from PIL import Image

from jaxpa import inversion
from jaxpa.adapters.lay import adapt
from jaxpa.adapters.spec import Loras, to_loras
from jaxpa.attention.observe import THRESHOLD, Attention, FoundMask, Look, Search, capture, find_mask
from jaxpa.checkpoint.load import load_parts, load_stages
from jaxpa.checkpoint.redux import load_redux
from jaxpa.checkpoint.source import resolve
from jaxpa.config import VariantName, Weights
from jaxpa.devices.memory import GIB, machine_bytes, peak_bytes
from jaxpa.devices.plan import all_stay, images_together, run_of
from jaxpa.devices.sharding import automatic, rules
from jaxpa.encoders.text import TextEmbedding, Tokenizers
from jaxpa.errors import JaxpaError
from jaxpa.media import images
from jaxpa.media.edits import Followed, MaskedPicture, prepare_edit
from jaxpa.media.images import Picture
from jaxpa.media.subjects import LoadedSubject, References, Subject, has_mask, load_subject
from jaxpa.model import Beside, Model
from jaxpa.personalize import Phase, Preset, Task
from jaxpa.request.groups import Method, Sampling
from jaxpa.request.prepare import Pictures, prepare, standing_for
from jaxpa.request.request import Request
from jaxpa.routing import (
    block_taus,
    context_routing,
    context_size,
    join,
    perturb,
    repeat_placement,
    replacement_index,
    replacement_weight,
    start_noise,
    token_guidance,
)
from jaxpa.runs import OnStep, personalized, sampled
from jaxpa.sampling import at_positions
from jaxpa.tokens import Placement, Routing


class Pipeline(Model):
    """A loaded checkpoint and what can be made with it.

    Every method is a `Request` in the making: its keywords are the fields of `request.Sampling` (seed, num_images,
    steps, guidance, height, width, negative_prompt, ...), and where there are references those of `request.Method`
    (preset, tau, level, path, start, concat, ...). Every method raises JaxpaError for bad input.
    """

    def make(
        self, request: Request, prepared: Pictures | None = None, on_step: OnStep | None = None
    ) -> list[Image.Image]:
        """The pictures of a request: every combination of tau (slowest), seed and place (fastest).

        prepared: what `prepare` has made of the request's pictures (None: it is made here). on_step: hears each step.
        """
        request.check(self.spec)
        with self.on_devices():
            return self._made(request, self.prepare(request) if prepared is None else prepared, on_step)

    def _made(self, request: Request, prepared: Pictures | None, on_step: OnStep | None) -> list[Image.Image]:
        if isinstance(prepared, MaskedPicture):
            if request.riding(self.spec):
                made = self._personalized(request, prepared.references(self.cell), on_step)
            else:
                made = self._generated(request, prepared, on_step)
            feather = 0.0 if request.editing is None else request.editing.feather
            return [prepared.paste(each, feather) for each in made]
        if isinstance(prepared, References):
            return self._personalized(request, prepared, on_step)
        return self._generated(request, prepared, on_step)

    def prepare(self, request: Request) -> Pictures | None:
        """A request's pictures, masks and places on the canvas; a mask is found by its word. None: it has none."""
        if request.editing is None and request.subjects:
            request = dataclasses.replace(request, subjects=tuple(self.with_mask(each) for each in request.subjects))
        return prepare(request, self.spec)

    def generate(
        self, prompt: str | Sequence[str] | TextEmbedding, *, on_step: OnStep | None = None, **keywords: Any
    ) -> list[Image.Image]:
        """Pictures of a prompt, or of one prompt each. Image k has the seed `seed + k`, or seed[k].

        prompt: text, or what `encode_text` made of it. An image depends on its own seed alone, whatever the batch.
        control: a picture whose shapes it follows, for FLUX.1-Canny and -Depth. image_prompt: a picture whose look it
        takes, by FLUX.1-Redux; the prompt may then be empty.
        """
        return self.make(Request.of(prompt, **keywords), on_step=on_step)

    def edit(
        self, image: Picture, prompt: str | Sequence[str] | TextEmbedding, *, on_step: OnStep | None = None,
        **keywords: Any,
    ) -> list[Image.Image]:  # fmt: skip
        """Change a picture as the prompt says (FLUX.1-Kontext). Of its own size, or nearly, unless height or width say.

        Keywords: those of `request.Sampling`.
        """
        return self.make(Request.of(prompt, picture=image, **keywords), on_step=on_step)

    def _generated(
        self, request: Request, pictures: MaskedPicture | Followed | None, on_step: OnStep | None
    ) -> list[Image.Image]:
        said = request.sampling
        tokens = self.sample_generated(request, pictures, on_step)
        return self.decode(tokens, *((said.height, said.width) if pictures is None else pictures.canvas))

    def sample_generated(
        self, request: Request, pictures: MaskedPicture | Followed | None = None, on_step: OnStep | None = None
    ) -> jax.Array:
        """The tokens behind pictures without references: (B, N, C). pictures: what the network itself reads."""
        said = request.sampling
        canvas = (said.height, said.width) if pictures is None else pictures.canvas
        embedded = None if request.embedding is None else self.read_embedding(request.embedding)
        count = len(request.prompts) if embedded is None else len(embedded)
        guidance, grid = self.spec.guidance(said.guidance), self.grid(*canvas)
        times, made = self.times(said.steps, grid), []
        self.encode_ahead(request)
        image = None if request.image_prompt is None else self.encode_image_prompt(request.image_prompt)
        beside = self.beside(pictures)
        which = np.arange(len(said.seeds(count))) % count  # prompts take turns
        for rows, kept in self._batches(request, which, grid):
            seeds, turn = np.asarray(said.seeds(count), np.uint32)[rows], which[rows]
            text = self.prompt_rows(request, embedded, turn, image)
            negative = self.negative(said.negative_prompt, guidance, len(rows))
            # The velocity, which holds the network, is kept by nobody.
            tokens = sampled(
                self.guided(text, grid, guidance, negative, beside=beside), self.noise(seeds, grid), times, on_step,
                said.solver,
            )  # fmt: skip
            made.append(tokens[:kept])
        return jnp.concatenate(made) if len(made) > 1 else made[0]

    def _batches(self, request: Request, images: np.ndarray, grid: tuple[int, int]) -> Iterator[tuple[np.ndarray, int]]:
        """Which images (or seeds, where each has several places) are sampled together, and how many of them count.

        All batches are of one size, so that they share a program: the last one is filled up.
        """
        canvas = (grid[0] * self.cell, grid[1] * self.cell)
        run = run_of(request, self.spec, canvas)
        together = images_together(request, run, self.held, jax.devices()[0].platform)
        if not together:
            need = peak_bytes(run.load(1, self.held), jax.devices()[0].platform)
            raise JaxpaError(
                f"one image of {canvas[1]} x {canvas[0]} pixels takes about {need / GIB:.1f} GiB, and this machine has "
                f"{(machine_bytes() or 0) / GIB:.1f}: make it smaller, or try it anyway with batch_size=1"
            )
        size = max(1, together // max(1, len(request.places)))
        for start in range(0, len(images), size):
            rows = np.arange(start, min(start + size, len(images)))
            yield np.concatenate([rows, np.full(size - len(rows), rows[-1])]) if len(images) > size else rows, len(rows)

    # Personalize Anything ------------------------------------------------------------------------------------

    def preset(self, preset: str | Preset | None = None, **switches: Any) -> Preset:
        """A named preset (None: the checkpoint's own), with the switches that are given in place of its own.

        None is a value: concat=None and guidance_inside=None switch off what the preset has.
        """
        tau = switches.pop("tau", None)
        chosen = Method(preset=preset, **switches).switches(self.settings.preset)  # type: ignore[arg-type]
        return chosen if tau is None else dataclasses.replace(chosen, tau=tau)

    def references(self, subjects: Sequence[Subject], scene: Subject | None = None, **keywords: Any) -> References:
        """Pictures, token masks and placements, as `personalize` takes them: height, width, at, coverage, ..."""
        made = self.prepare(Request.of(subjects=subjects, scene=scene, **_places(keywords)))
        if not isinstance(made, References):
            raise JaxpaError("nothing to personalise: give at least one subject, or a scene")
        return made

    def personalize(
        self, prompt: str | TextEmbedding, subjects: Sequence[Subject] | References, scene: Subject | None = None, *,
        on_step: OnStep | None = None, **keywords: Any,
    ) -> list[Image.Image]:  # fmt: skip
        """Pictures of a prompt with the subjects of references in them (Feng et al. 2025).

        tau, seed and at (placements of the last subject) may be lists: the result then has every combination, tau
        slowest, placement fastest, through one compiled program.
        """
        keywords = _places(keywords)
        if isinstance(subjects, References):
            height, width = (side * self.cell for side in subjects.grid)
            said = {"height": height, "width": width, **keywords}
            return self.make(Request.of(prompt, **standing_for(subjects), **said), subjects, on_step)
        request = Request.of(prompt, subjects=subjects, scene=scene, **keywords)
        return self.make(request.with_references(), on_step=on_step)

    def _personalized(self, request: Request, references: References, on_step: OnStep | None) -> list[Image.Image]:
        tokens = self.sample_personalized(request, references, on_step)
        return self.decode(tokens, *(side * self.cell for side in references.grid))

    def sample_personalized(self, request: Request, references: References, on_step: OnStep | None = None) -> jax.Array:
        """The tokens behind `personalize`, for every tau, seed and placement: (T * S * P, N, C)."""
        preset, taus, grid = request.switches(self.spec), request.taus(self.spec), references.grid
        self.encode_ahead(request, references.captions)
        seeds = np.asarray(request.sampling.seeds(), np.uint32)
        times = self.times(request.sampling.steps, grid)
        trajectory = self.trajectory(references, preset, times, on_step, request.sampling.solver)
        beside, made = self.beside(references), []
        for rows, kept in self._batches(request, seeds, grid):
            tokens = self._sample_seeds(request, references, (trajectory, beside), seeds[rows], on_step)
            shape = len(taus), len(rows), -1, *tokens.shape[1:]  # (T, S, P, N, C)
            made.append(tokens.reshape(shape)[:, :kept])
        return jnp.concatenate(made, 1).reshape(-1, *trajectory.shape[2:])

    def _sample_seeds(
        self, request: Request, references: References, encoded: tuple[jax.Array, Beside | None], seeds: np.ndarray,
        on_step: OnStep | None,
    ) -> jax.Array:  # fmt: skip
        """`sample_personalized` for some of the seeds; encoded: the references' trajectory, and what is read beside."""
        tasks, x = self.tasks(request, references, encoded, seeds)
        return jnp.concatenate([personalized(task, x, on_step) for task in tasks])

    def tasks(
        self, request: Request, references: References, encoded: tuple[jax.Array, Beside | None], seeds: np.ndarray
    ) -> tuple[list[Task], jax.Array]:
        """What `personalize.sample` is asked for: a task for each tau, and the noise; `encoded` as above."""
        trajectory, conditions = encoded[0], partial(self.conditions, beside=encoded[1])
        preset, taus = request.switches(self.spec), request.taus(self.spec)
        steps, negative_prompt = request.sampling.steps, request.sampling.negative_prompt
        grid, guidance = references.grid, self.spec.guidance(request.sampling.guidance)
        times = self.times(steps, grid)
        gates = [block_taus(tau, preset.tau_blocks, times, self.spec.blocks) for tau in taus]
        p = len(references.where.source)
        seeds, g = np.repeat(seeds, p), len(seeds) * p  # placements fastest
        placement, noise_from = perturb(
            repeat_placement(references.where, g // p), references.masks, seeds, np.float32(preset.shuffle), grid,
            preset.outline, preset.margin, references.scene,
        )  # fmt: skip
        solver = request.sampling.solver
        x = start_noise(self.noise(seeds, grid), trajectory, noise_from, moved=preset.start == "moved")
        captions, prompts = self.encode_text(references.captions), self.repeated_prompt(request, g)
        rows = TextEmbedding.concatenate([captions, prompts])
        negative = self.negative(negative_prompt, guidance, g)
        inside = guidance if preset.guidance_inside is None else preset.guidance_inside
        scale = token_guidance(placement, np.float32(guidance), np.float32(inside))
        r = len(captions)
        text, riding = (rows, r) if preset.level == "layer" else (prompts, 0)
        before = Phase(
            conditions(text, grid, guidance, negative, riding, inside, scale),
            self.replacement(preset, references, placement),
        )
        size = context_size(int(references.masks.sum()), references.masks.size) if preset.concat else 0
        alone = conditions(prompts, grid, guidance, negative)
        if preset.concat is None:
            after = Phase(alone)
        elif preset.concat == "joined":
            joined = join(references.masks, grid, size)
            length = jnp.broadcast_to(joined.length, g)
            after = Phase(at_positions(alone, joined.positions), Routing(length=length), joined.tokens)
        else:
            routing = context_routing(references.masks, placement, g, grid, preset.concat, size)
            after = Phase(conditions(rows, grid, guidance, negative, r), routing)
        eta, model = jnp.asarray(inversion.control(len(times) - 1, preset.eta)), self.parts.transformer
        task = Task(trajectory, eta, jnp.asarray(times), jnp.float32(0), before, after, model, preset.level, solver)
        return [dataclasses.replace(task, tau=jnp.asarray(gate)) for gate in gates], x

    def replacement(self, preset: Preset, references: References, placement: Placement) -> Routing:
        """What feeds every token while t > tau, and how far: placement (G, R, N)."""
        source = replacement_index(placement)
        shares = None
        if preset.soft:
            shares = jnp.asarray(references.masks if references.shares is None else references.shares, jnp.float32)
        return Routing(source, replacement_weight(preset.parts, preset.blocks, self.spec.blocks, shares, source))

    # Editing -------------------------------------------------------------------------------------------------

    def inpaint(
        self, image: Picture, mask: Picture, prompt: str | TextEmbedding, *, on_step: OnStep | None = None,
        **keywords: Any,
    ) -> list[Image.Image]:  # fmt: skip
        """Draw the masked part of a picture anew; the rest comes back exactly (Section 3.4: what is kept replaces).

        mask is white where the picture may change. Further keywords: those of `request.Editing` (caption, feather,
        grow); height and width of the canvas (None: the picture's aspect at the checkpoint's size).
        """
        return self.make(Request.of(prompt, image=image, mask=mask, **keywords), on_step=on_step)

    def outpaint(
        self, image: Picture, prompt: str | TextEmbedding, pad: Sequence[int], *, on_step: OnStep | None = None,
        **keywords: Any,
    ) -> list[Image.Image]:  # fmt: skip
        """Continue a picture beyond its sides: pad (top, right, bottom, left) in its own pixels. Else as `inpaint`."""
        return self.make(Request.of(prompt, image=image, pad=pad, **keywords), on_step=on_step)

    def canvas(self, size: tuple[int, int], height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """The canvas (height, width) for a picture of `size` (W, H): its aspect, the checkpoint's area."""
        return self.spec.canvas(size, height, width)

    def reconstruct(
        self, image: Picture, *, caption: str = "", on_step: OnStep | None = None, **keywords: Any
    ) -> tuple[Image.Image, jax.Array]:
        """Invert a picture and sample it back: (picture, noise (1, N, C)). What is lost is the inversion's error.

        Further keywords: steps, height and width.
        """
        sampling = Sampling(**keywords)
        picture = images.read_image(image)
        edit = prepare_edit(picture, None, self.canvas(picture.size, sampling.height, sampling.width), caption)
        references = edit.references(self.cell)
        times = self.times(sampling.steps, references.grid)
        with self.on_devices():
            noise = self.trajectory(references, self.preset(path="ode"), times, on_step, sampling.solver)[0]
            text = self.encode_text([caption])
            tokens = sampled(self.guided(text, references.grid, 1.0, None), noise, times, on_step, sampling.solver)
            return self.decode(tokens, edit.height, edit.width)[0], noise

    # Looking inside ------------------------------------------------------------------------------------------

    def attention(
        self, prompt: str, image: Picture | None = None, *, at: Sequence[int] | None = None,
        blocks: Sequence[int] | None = None, heads: bool = False, **keywords: Any,
    ) -> Attention:  # fmt: skip
        """Attention maps (S, L, M + N, M + N) of a generation, or of the inversion of `image` with its caption.

        at: which steps of the schedule, 0 the noisiest; blocks: which, double blocks first; None: all (a map of 4608
        tokens is 81 MiB: choose). heads: each apart, (S, L, H, ...), instead of their mean. `.quadrants` takes the
        maps apart. The run that is looked at is an untouched one. Further keywords: those of `request.Sampling`.
        """
        with self.on_devices():
            return capture(self, Request.of(prompt, **keywords), image, Look(at, blocks, heads))

    def find_mask(
        self, image: Picture, word: str, caption: str | None = None, *, threshold: float = THRESHOLD, **keywords: Any
    ) -> FoundMask:
        """Where a picture shows what a word names, from attention: `.soft` (h, w), `.tokens` (N,), `.pixels(size)`.

        caption: what the picture shows; the word must stand in it (None: "a picture of a" word). threshold: of the
        map's range. Further keywords: steps; height and width of the canvas (None: the picture's aspect).
        """
        with self.on_devices():
            return find_mask(self, image, Search(word, caption, threshold), Sampling(**keywords))

    def with_mask(self, subject: Subject) -> LoadedSubject:
        """The subject, read, with its mask found by its word if it has none. Raises JaxpaError without either."""
        subject = load_subject(subject)
        if has_mask(subject):
            return subject
        found = self.find_mask(subject.image, subject.word, subject.caption or None)
        return dataclasses.replace(subject, mask=found.pixels(subject.image.size).astype(np.float32))


def _places(keywords: dict[str, Any]) -> dict[str, Any]:
    """`at`, as Python says it, is the layout of a request."""
    at = keywords.pop("at", None)
    return keywords if at is None else {**keywords, "places": at}


def load(
    source: str | Path = "mini", dtype: DTypeLike | None = None, mesh: Mesh | None = None, *,
    components: str | Path | None = None, weights: Weights | None = None, resident: bool | None = None,
    variant: VariantName | None = None, loras: Loras = (), keep_loras: bool | None = None,
    redux: str | Path | None = None,
) -> Pipeline:  # fmt: skip
    """Load a checkpoint.

    source: `mini` (the embedded one), a diffusers or converted folder, a single .safetensors file of the original
    release (then `components` names where the rest comes from), or a hub id; dtype: of all networks (None: float32
    on CPU, bfloat16 elsewhere); mesh: devices to spread the networks and the rows of a batch over, with axes "data" and
    "model" (`jaxpa.devices.sharding.make_mesh`); weights: "int8" or "fp8" rounds the blocks of the transformer and of
    T5 to eight bits as they are read (`jaxpa.quantised`); resident: whether all networks stay in memory, or each is
    loaded for its stage and freed after: text, sampling, pictures (None: they stay if they all fit); variant: which of
    FLUX.1's sister models it is (`jaxpa.backbones.variants`; None: as its files say); loras: files, or pairs of a file
    and a scale; keep_loras: keep them beside the weights, where `with_loras` exchanges them, instead of merging them
    into the weights (None: beside weights of eight bits); redux: a folder or hub id of FLUX.1-Redux, for image prompts.
    Raises CheckpointError with everything that is wrong.
    """
    mesh = None if mesh is None else automatic(mesh)
    found = resolve(source, components, variant=variant)
    found = adapt(found, loras := to_loras(loras), keep_loras, weights)
    sharding = None if mesh is None else rules(mesh)
    if resident is None:
        resident = all_stay(found, dtype, weights, 1 if mesh is None else mesh.shape["model"])
    read = load_parts if resident else load_stages
    parts = read(found, dtype=dtype, sharding=sharding, weights=weights)
    clip, t5 = (parts.tokenizers[name].parent for name in ("tokenizer", "tokenizer_2"))
    prior = None if redux is None else load_redux(redux, found.config.transformer.joint_attention_dim, dtype)
    return Pipeline(parts, Tokenizers.load(clip, t5), mesh, () if parts.bare else loras, prior)
