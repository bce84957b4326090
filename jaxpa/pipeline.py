"""Prompts and pictures in, pictures out: the one place where the parts are put together.

pipe = jaxpa.load("mini")
pipe.generate("a red car on a beach")
pipe.personalize("a red car on a beach", [jaxpa.Subject("car.png", mask="mask.png", at=(0.3, 0.6))])
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from PIL import Image

from jaxpa import inversion, personalize, sampling
from jaxpa.attention.observe import THRESHOLD, Attention, FoundMask, capture, find_mask
from jaxpa.checkpoint.load import load_parts
from jaxpa.devices.sharding import rules
from jaxpa.encoders.text import TextEmbedding, Tokenizers
from jaxpa.errors import JaxpaError
from jaxpa.inversion import ForwardTimes
from jaxpa.loops import Run, stepped
from jaxpa.media import images
from jaxpa.media.edits import MaskedPicture, pad_picture, prepare_edit
from jaxpa.media.images import Picture
from jaxpa.media.masks import canvas_size
from jaxpa.media.subjects import Place, References, Subject, has_mask, read_references
from jaxpa.model import Model, seeds_of
from jaxpa.personalize import (
    PRESETS,
    Phase,
    Preset,
    Task,
    context_size,
    perturb,
    repeat_placement,
    routings,
    start_noise,
    token_guidance,
)
from jaxpa.sampling import Velocity
from jaxpa.schedule import Steps, tau_time

OnStep = Callable[[str, int, int], None]
"""Hears (stage, steps done, steps in all) after every step. Where there is one, the host steps the loop."""

_sample, _invert = jax.jit(sampling.sample), jax.jit(inversion.invert, static_argnums=5)
_closed_form = jax.jit(inversion.closed_form)
_personalize = jax.jit(personalize.sample)
_line = jax.jit(inversion.straight_line)


class Pipeline(Model):
    """A loaded checkpoint and what can be made with it."""

    def generate(
        self, prompt: str | Sequence[str], *, seed: int | Sequence[int] = 0, num_images: int = 1,
        steps: int | None = None, guidance: float | None = None, height: int | None = None, width: int | None = None,
        negative_prompt: str | None = None, on_step: OnStep | None = None,
    ) -> list[Image.Image]:  # fmt: skip
        """Pictures of a prompt, or of one prompt each. Image k has the seed `seed + k`, or seed[k].

        An image depends on its own seed alone, whatever the batch. Raises JaxpaError for bad input.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        seeds = seeds_of(seed, max(num_images, len(prompts)))
        guidance = self.settings.guidance if guidance is None else guidance
        grid = self.grid(height, width)
        times = self.times(steps, grid)
        text = self.encode_text([prompts[k % len(prompts)] for k in range(len(seeds))])
        velocity = self.guided(text, grid, guidance, self.negative(negative_prompt, guidance, len(seeds)))
        x = self.noise(seeds, grid)
        return self.decode(_sampled(velocity, x, times, on_step), height, width)

    # Personalize Anything ------------------------------------------------------------------------------------

    def preset(self, preset: str | Preset | None = None, **switches: Any) -> Preset:
        """The switches of a call: a named preset (None: the checkpoint's own), those that are given replaced."""
        name = self.settings.preset if preset is None else preset
        if isinstance(name, str) and name not in PRESETS:
            raise JaxpaError(f"there is no preset {name!r}: use one of {', '.join(PRESETS)}")
        base = PRESETS[name] if isinstance(name, str) else name
        return dataclasses.replace(base, **{key: value for key, value in switches.items() if value is not None})

    def references(
        self, subjects: Sequence[Subject], scene: Subject | None = None, *, height: int | None = None,
        width: int | None = None, at: Sequence[Place | None] | None = None, coverage: float | None = None,
    ) -> References:  # fmt: skip
        """Pictures, token masks and placements, as `personalize` takes them. Raises JaxpaError for bad input.

        coverage: as in `Preset` (None: that of the checkpoint's preset).
        """
        h, w = self.grid(height, width)
        coverage = self.preset().coverage if coverage is None else coverage
        subjects = [self.with_mask(subject) for subject in subjects]
        return read_references(subjects, scene, h * self.cell, w * self.cell, (h, w), at, coverage)

    def personalize(
        self, prompt: str, subjects: Sequence[Subject] | References, scene: Subject | None = None, *,
        tau: float | Steps | Sequence[float | Steps] | None = None, seed: int | Sequence[int] = 0, num_images: int = 1,
        at: Sequence[Place | None] | None = None, steps: int | None = None, guidance: float | None = None,
        height: int | None = None, width: int | None = None, negative_prompt: str | None = None,
        preset: str | Preset | None = None, on_step: OnStep | None = None, **switches: Any,
    ) -> list[Image.Image]:  # fmt: skip
        """Pictures of a prompt with the subjects of references in them (Feng et al. 2025).

        tau, seed and at (placements of the last subject) may be lists: the result then has every combination, tau
        slowest, placement fastest, through one compiled program. preset and the further keywords are the switches of
        `personalize.Preset`: level, path, start, concat, ... Raises JaxpaError for bad input.
        """
        taus = [tau] if tau is None or isinstance(tau, float | int | Steps) else list(tau)
        switch = self.preset(preset, **switches)
        if not isinstance(subjects, References):
            subjects = self.references(subjects, scene, height=height, width=width, at=at, coverage=switch.coverage)
        tokens = self.sample_personalized(
            prompt, subjects, switch, [switch.tau if each is None else each for each in taus],
            seeds_of(seed, num_images), steps, guidance, negative_prompt, on_step,
        )  # fmt: skip
        return self.decode(tokens, *(side * self.cell for side in subjects.grid))

    def sample_personalized(
        self, prompt: str, references: References, preset: Preset, taus: Sequence[float | Steps], seeds: np.ndarray,
        steps: int | None = None, guidance: float | None = None, negative_prompt: str | None = None,
        on_step: OnStep | None = None,
    ) -> jax.Array:  # fmt: skip
        """The tokens behind `personalize`, for every tau, seed and placement: (T * S * P, N, C)."""
        grid, guidance = references.grid, self.settings.guidance if guidance is None else guidance
        times = self.times(steps, grid)
        gates = [gate_time(tau, times) for tau in taus]
        p = len(references.where.source)
        seeds, g = np.repeat(seeds, p), len(seeds) * p  # placements fastest
        placement, noise_from = perturb(
            repeat_placement(references.where, g // p), references.masks, seeds, np.float32(preset.shuffle), grid,
            preset.outline, preset.margin, references.scene,
        )  # fmt: skip
        path = self.path(references, preset, times, on_step)
        x = start_noise(self.noise(seeds, grid), path, noise_from, moved=preset.start == "moved")
        size = context_size(int(references.masks.sum()), references.masks.size) if preset.concat else 0
        early, late = routings(references.masks, placement, g, grid, preset.concat, size)

        captions, prompts = self.encode_text(references.captions), self.encode_text([prompt] * g)
        rows = TextEmbedding.concatenate([captions, prompts])
        negative = self.negative(negative_prompt, guidance, g)
        inside = guidance if preset.guidance_inside is None else preset.guidance_inside
        scale = token_guidance(placement, np.float32(guidance), np.float32(inside))
        r = len(captions)
        alone = self.guided(prompts, grid, guidance, negative)
        if preset.level == "layer":
            before = Phase(self.guided(rows, grid, guidance, negative, r, inside, scale), early)
        else:
            before = Phase(self.guided(prompts, grid, guidance, negative, 0, inside, scale), early)
        after = Phase(self.guided(rows, grid, guidance, negative, r) if late else alone, late)
        eta = jnp.asarray(inversion.control(len(times) - 1, preset.eta))
        tasks = [
            Task(path, eta, jnp.asarray(times), jnp.float32(tau), before, after, level=preset.level) for tau in gates
        ]
        return jnp.concatenate([_personalized(task, x, on_step) for task in tasks])

    # Editing -------------------------------------------------------------------------------------------------

    def inpaint(
        self, image: Picture, mask: Picture, prompt: str, *, caption: str = "", feather: float = 0.0,
        height: int | None = None, width: int | None = None, preset: str | Preset | None = None,
        tau: float | Steps | None = None, **arguments: Any,
    ) -> list[Image.Image]:  # fmt: skip
        """Draw the masked part of a picture anew; the rest comes back exactly (Section 3.4: what is kept replaces).

        mask is white where the picture may change. feather: pixels over which the two are blended at its outline.
        height, width: of the canvas (None: the picture's aspect at the checkpoint's size). Other keywords as in
        `personalize`. Raises JaxpaError for bad input.
        """
        picture = images.read_image(image)
        edit = prepare_edit(
            picture, images.read_mask(mask, picture.size), self.canvas(picture.size, height, width), caption
        )
        tau = self.preset(preset).inpaint_tau if tau is None else tau
        return self.edit(prompt, edit, feather, preset=preset, tau=tau, **arguments)

    def outpaint(
        self, image: Picture, prompt: str, pad: Sequence[int], *, caption: str = "", feather: float = 0.0,
        height: int | None = None, width: int | None = None, preset: str | Preset | None = None,
        tau: float | Steps | None = None, **arguments: Any,
    ) -> list[Image.Image]:  # fmt: skip
        """Continue a picture beyond its sides: pad (top, right, bottom, left) in its own pixels. Else as `inpaint`."""
        picture, mask = pad_picture(images.read_image(image), pad)
        edit = prepare_edit(picture, mask, self.canvas(picture.size, height, width), caption)
        tau = self.preset(preset).outpaint_tau if tau is None else tau
        return self.edit(prompt, edit, feather, preset=preset, tau=tau, **arguments)

    def edit(self, prompt: str, edit: MaskedPicture, feather: float = 0.0, **arguments: Any) -> list[Image.Image]:
        """Pictures of a prompt in which the kept part of an edit stays; see `inpaint`."""
        arguments = {"shuffle": 0.0, "outline": 0, "margin": 0} | arguments
        made = self.personalize(prompt, edit.references(self.cell), **arguments)
        return [edit.paste(each, feather) for each in made]

    def canvas(self, size: tuple[int, int], height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """The canvas (height, width) for a picture of `size` (W, H): its aspect, the checkpoint's area."""
        if height is None and width is None:
            height, width = canvas_size(size, self.settings.size, self.cell)
        h, w = self.grid(height, width)
        return h * self.cell, w * self.cell

    def reconstruct(
        self, image: Picture, *, caption: str = "", steps: int | None = None, height: int | None = None,
        width: int | None = None, on_step: OnStep | None = None,
    ) -> tuple[Image.Image, jax.Array]:  # fmt: skip
        """Invert a picture and sample it back: (picture, noise (1, N, C)). What is lost is the inversion's error."""
        picture = images.read_image(image)
        edit = prepare_edit(picture, None, self.canvas(picture.size, height, width), caption)
        references = edit.references(self.cell)
        times = self.times(steps, references.grid)
        noise = self.path(references, self.preset(path="ode"), times, on_step)[0]
        x, velocity = noise, self.guided(self.encode_text([caption]), references.grid, 1.0, None)
        return self.decode(_sampled(velocity, x, times, on_step), edit.height, edit.width)[0], noise

    def path(
        self, references: References, preset: Preset, times: np.ndarray, on_step: OnStep | None = None
    ) -> jax.Array:
        """The references at every flow time of a schedule: (S + 1, R, N, C). Their noise has seeds of their own."""
        x0 = self.encode_image(references.images)
        noise = self.noise(np.arange(len(x0), dtype=np.uint32) + REFERENCE_SEED, references.grid)
        if preset.path == "line":
            return _line(x0, noise, times)
        official = inversion.official_forward_times(times)
        if preset.path == "rf" and preset.gamma == 1.0:
            return _line(x0, _closed_form(x0, noise, official), times)
        # Guidance bends the flow, and what it bends cannot be walked back.
        velocity = self.guided(self.encode_text(references.captions), references.grid, 1.0, None)
        if preset.path == "rf":
            return _line(x0, _inverted(velocity, x0, noise, official, preset.gamma, on_step)[-1], times)
        return _inverted(velocity, x0, noise, inversion.forward_times(times), 0.0, on_step, preset.sweeps)[::-1]

    # Looking inside ------------------------------------------------------------------------------------------

    def attention(
        self, prompt: str, image: Picture | None = None, *, at: Sequence[int] | None = None,
        blocks: Sequence[int] | None = None, heads: bool = False, seed: int = 0, steps: int | None = None,
        guidance: float | None = None, height: int | None = None, width: int | None = None,
    ) -> Attention:  # fmt: skip
        """Attention maps (S, L, M + N, M + N) of a generation, or of the inversion of `image` with its caption.

        at: which steps of the schedule, 0 the noisiest; blocks: which, double blocks first; None: all (a map of 4608
        tokens is 81 MiB: choose). heads: each apart, (S, L, H, ...), instead of their mean. `.quadrants` takes the
        maps apart. The run that is looked at is an untouched one. Raises JaxpaError for bad input.
        """
        size = self.settings.size
        canvas = (height or size, width or size)
        if image is not None:
            canvas = self.canvas(images.read_image(image).size, height, width)
        return capture(
            self, prompt, image, at=at, blocks=blocks, heads=heads, seed=seed, steps=steps, guidance=guidance,
            canvas=canvas,
        )  # fmt: skip

    def find_mask(
        self, image: Picture, word: str, caption: str | None = None, *, threshold: float = THRESHOLD,
        steps: int | None = None, height: int | None = None, width: int | None = None,
    ) -> FoundMask:  # fmt: skip
        """Where a picture shows what a word names, from attention: `.soft` (h, w), `.tokens` (N,), `.pixels(size)`.

        caption: what the picture shows; the word must stand in it (None: "a picture of a" word). threshold: of the
        map's range. height, width: of the canvas (None: the picture's aspect). Raises JaxpaError for bad input.
        """
        picture = images.read_image(image)
        canvas = self.canvas(picture.size, height, width)
        return find_mask(self, picture, word, caption, steps, threshold, canvas)

    def with_mask(self, subject: Subject) -> Subject:
        """The subject with its mask found by its word, if it has none of its own. Raises JaxpaError without either."""
        if has_mask(subject):
            return subject
        picture = images.read_image(subject.image)
        return dataclasses.replace(subject, mask=self.find_mask(picture, subject.word).pixels(picture.size))


REFERENCE_SEED = 1 << 31  # the first reference's noise; images usually count from 0


def _watched(run: Run, stage: str, on_step: OnStep) -> Any:
    """The result of a run that the host steps, telling `on_step` of each step."""
    result = run.result(run.state)
    for progress in stepped(run):
        on_step(stage, progress.step, progress.steps)
        result = progress.result
    return result


def _sampled(velocity: Velocity, x: jax.Array, times: np.ndarray, on_step: OnStep | None) -> jax.Array:
    """`sampling.sample`, stepped by the host where someone listens."""
    if on_step is None:
        return _sample(velocity, x, times)
    return _watched(sampling.sampling_run(velocity, x, jnp.asarray(times)), "sample", on_step)


def _personalized(task: Task, x: jax.Array, on_step: OnStep | None) -> jax.Array:
    """`personalize.sample`, likewise."""
    if on_step is None:
        return _personalize(task, x)
    return _watched(personalize.task_run(task, x), "sample", on_step)


def _inverted(
    velocity: Velocity,
    x0: jax.Array,
    noise: jax.Array,
    forward: ForwardTimes,
    gamma: float,
    on_step: OnStep | None,
    sweeps: int = 0,
) -> jax.Array:
    """`inversion.invert`, likewise."""
    if on_step is None:
        return _invert(velocity, x0, noise, forward, gamma, sweeps)
    states = [x0]
    for progress in stepped(inversion.inversion_run(velocity, x0, noise, forward, gamma, sweeps)):
        on_step("invert", progress.step, progress.steps)
        states.append(progress.result)
    return jnp.stack(states)


def gate_time(tau: float | Steps, times: np.ndarray) -> float:
    """tau in flow time. Raises JaxpaError outside [0, 1]."""
    try:
        return tau_time(tau, times)
    except ValueError as error:
        raise JaxpaError(str(error)) from None


def load(
    source: str | Path = "mini", dtype: DTypeLike | None = None, mesh: Mesh | None = None, *,
    components: str | Path | None = None,
) -> Pipeline:  # fmt: skip
    """Load a checkpoint.

    source: `mini` (the embedded one), a diffusers or converted folder, a single .safetensors file of the original
    release (then `components` names where the rest comes from), or a hub id; dtype: of all networks (None: float32
    on CPU, bfloat16 elsewhere); mesh: devices to spread the networks over (`jaxpa.devices.sharding`).
    Raises CheckpointError with everything that is wrong.
    """
    parts = load_parts(source, components, dtype, None if mesh is None else rules(mesh))
    folder = {path.parent for path in parts.tokenizers.values()}
    return Pipeline(parts, Tokenizers.load(folder.pop()))
