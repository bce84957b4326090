"""A request to the tokens of its pictures: which rows are sampled together, and what each of them is asked for."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpa import inversion
from jaxpa.devices.memory import GIB, machine_bytes, peak_bytes
from jaxpa.devices.plan import images_together, run_of
from jaxpa.encoders.text import TextEmbedding
from jaxpa.errors import JaxpaError
from jaxpa.media.subjects import References
from jaxpa.model import Beside, Model
from jaxpa.personalize import Phase, Preset, Task
from jaxpa.request.groups import Method
from jaxpa.request.prepare import NotReferences
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
from jaxpa.sampling import Conditions, at_positions
from jaxpa.tokens import Placement, Routing


class Sampler(Model):
    """A loaded checkpoint that answers a `Request` in tokens; `jaxpa.pipeline` makes pictures of them."""

    def sample_generated(
        self, request: Request, pictures: NotReferences | None = None, on_step: OnStep | None = None
    ) -> Iterator[jax.Array]:
        """The tokens behind pictures without references: (B, N, C) of one device batch after the other.

        pictures: what the network itself reads, or what is started from.
        """
        said = request.sampling
        canvas = (said.height, said.width) if pictures is None else pictures.canvas
        embedded = None if request.embedding is None else self.read_embedding(request.embedding)
        if embedded is not None:
            request = dataclasses.replace(request, embedding=embedded)
        count = request.prompt_count
        guidance, grid = request.guidance(self.spec), self.grid(*canvas)
        times = request.times(self.spec, grid)
        self.encode_ahead(request, on_step=on_step)
        if embedded is None and request.reads_text and len(said.seeds(count)) > count:  # prompts are taken again
            embedded = self.encode_text(request.prompts, on_step)
        start = self.encode_start(pictures)
        image = None if request.image_prompt is None else self.encode_image_prompt(request.image_prompt)
        beside = self.beside(pictures)
        which = np.arange(len(said.seeds(count))) % count  # prompts take turns
        for rows, kept in self._batches(request, which, grid):
            seeds, turn = np.asarray(said.seeds(count), np.uint32)[rows], which[rows]
            text = self.prompt_rows(request, embedded, turn, image)
            negative = self.negative(said.negative_prompt, guidance, len(rows))
            x = self.started(start, self.noise(seeds, grid), times)
            # The velocity, which holds the network, is kept by nobody.
            tokens = sampled(
                self.guided(text, grid, guidance, negative, beside=beside), x, times, on_step, said.solver, said.cache
            )
            yield tokens[:kept]

    def _batches(self, request: Request, images: np.ndarray, grid: tuple[int, int]) -> Iterator[tuple[np.ndarray, int]]:
        """Which images (or seeds, where each has several places) are sampled together, and how many of them count.

        All batches are of one size, so that they share a program: the last one is filled up.
        """
        canvas = (grid[0] * self.cell, grid[1] * self.cell)
        run = run_of(request, self.spec, canvas)
        platform = jax.devices()[0].platform
        together = images_together(request, run, self.held, platform)
        if not together:
            need = peak_bytes(run.load(1, self.held, platform), platform)
            raise JaxpaError(
                f"one image of {canvas[1]} x {canvas[0]} pixels takes about {need / GIB:.1f} GiB, and this machine has "
                f"{(machine_bytes() or 0) / GIB:.1f}: make it smaller, or try it anyway with batch_size=1"
            )
        size = max(1, together // max(1, len(request.places)))
        for start in range(0, len(images), size):
            rows = np.arange(start, min(start + size, len(images)))
            yield np.concatenate([rows, np.full(size - len(rows), rows[-1])]) if len(images) > size else rows, len(rows)

    def preset(self, preset: str | Preset | None = None, **switches: Any) -> Preset:
        """A named preset (None: the checkpoint's own), with the switches that are given in place of its own.

        None is a value: concat=None and guidance_inside=None switch off what the preset has.
        """
        tau = switches.pop("tau", None)
        chosen = Method(preset=preset, **switches).switches(self.settings.preset)  # type: ignore[arg-type]
        return chosen if tau is None else dataclasses.replace(chosen, tau=tau)

    def sample_personalized(self, request: Request, references: References, on_step: OnStep | None = None) -> jax.Array:
        """The tokens behind `personalize`, for every tau, seed and placement: (T * S * P, N, C)."""
        preset, taus, grid = request.switches(self.spec), request.taus(self.spec), references.grid
        self.encode_ahead(request, references.captions, on_step)
        seeds = np.asarray(request.sampling.seeds(), np.uint32)
        if request.embedding is None and len(seeds) > 1:  # it may take several batches
            embedded = self.encode_text(request.prompts, on_step)
            request = dataclasses.replace(request, prompt=None, embedding=embedded)
        times = request.times(self.spec, grid)
        trajectory = self.trajectory(references, preset, times, on_step, request.sampling.solver)
        beside, made = self.beside(references), []
        for rows, kept in self._batches(request, seeds, grid):
            tokens = self._sample_seeds(request, references, (trajectory, beside), seeds[rows], on_step)
            shape = len(taus), len(rows), -1, *tokens.shape[1:]  # (T, S, P, N, C)
            made.append(tokens.reshape(shape)[:, :kept])
        return jnp.concatenate(made, 1).reshape(-1, *trajectory.shape[2:])

    def _sample_seeds(
        self,
        request: Request,
        references: References,
        encoded: tuple[jax.Array, Beside | None],
        seeds: np.ndarray,
        on_step: OnStep | None,
    ) -> jax.Array:
        """`sample_personalized` for some of the seeds; encoded: the references' trajectory, and what is read beside."""
        tasks, x = self.tasks(request, references, encoded, seeds)
        return jnp.concatenate([personalized(self.with_network(task), x, on_step) for task in tasks])

    def with_network(self, task: Task) -> Task:
        """A task with the network: only now, since where networks take turns a task that waits must not hold one."""
        return dataclasses.replace(task, model=self.parts.transformer)

    def tasks(
        self, request: Request, references: References, encoded: tuple[jax.Array, Beside | None], seeds: np.ndarray
    ) -> tuple[list[Task], jax.Array]:
        """What `personalize.sample` is asked for: a task for each tau, `with_network` once it is run, and the noise.

        encoded: as above.
        """
        (trajectory, beside), grid, sampling = encoded, references.grid, request.sampling
        preset, taus, times = request.switches(self.spec), request.taus(self.spec), request.times(self.spec, grid)
        places = len(references.where.source)
        seeds = np.repeat(seeds, places)  # placements fastest
        placement, noise_from = perturb(
            repeat_placement(references.where, len(seeds) // places),
            references.masks,
            seeds,
            np.float32(preset.shuffle),
            grid,
            preset.outline,
            preset.margin,
            references.scene,
        )
        x = start_noise(self.noise(seeds, grid), trajectory, noise_from, moved=preset.start == "moved")
        captions, prompts = self.encode_text(references.captions), self.repeated_prompt(request, len(seeds))
        rows, r = TextEmbedding.concatenate([captions, prompts]), len(captions)
        guidance = request.guidance(self.spec)
        negative = self.negative(sampling.negative_prompt, guidance, len(seeds))
        conditions = partial(self.conditions, grid=grid, guidance=guidance, negative=negative, beside=beside)
        inside = guidance if preset.guidance_inside is None else preset.guidance_inside
        scale = token_guidance(placement, np.float32(guidance), np.float32(inside))
        text, riding = (rows, r) if preset.level == "layer" else (prompts, 0)
        around = request.method.surroundings
        opening = None if around is None else (self.encode_text([around] * len(seeds)), preset.surroundings_time)
        before = Phase(
            conditions(text, references=riding, inside=inside, scale=scale, opening=opening),
            self.replacement(preset, references, placement),
        )
        after = _after(preset, references, placement, conditions(prompts), partial(conditions, rows, references=r))
        gates = [block_taus(tau, preset.tau_blocks, times, self.spec.blocks) for tau in taus]
        eta = jnp.asarray(inversion.control(len(times) - 1, preset.eta))
        cache = None if sampling.cache is None else jnp.float32(sampling.cache)
        ahead = preset.reference_time if preset.level == "layer" else None
        task = Task(
            trajectory,
            eta,
            jnp.asarray(times),
            jnp.float32(0),
            before,
            after,
            level=preset.level,
            solver=sampling.solver,
            cache=cache,
            reference_time=None if ahead is None else jnp.float32(ahead),
        )
        return [dataclasses.replace(task, tau=jnp.asarray(gate)) for gate in gates], x

    def replacement(self, preset: Preset, references: References, placement: Placement) -> Routing:
        """What feeds every token while t > tau, and how far: placement (G, R, N)."""
        source = replacement_index(placement)
        shares = None
        if preset.soft:
            shares = jnp.asarray(references.masks if references.shares is None else references.shares, jnp.float32)
        return Routing(source, replacement_weight(preset.parts, preset.blocks, self.spec.blocks, shares, source))


def _after(
    preset: Preset,
    references: References,
    placement: Placement,
    alone: Conditions,
    riding: Callable[[], Conditions],
) -> Phase:
    """What holds once t <= tau (Section 3.4): the images by themselves, or with the references' tokens beside theirs.

    alone: conditions of the images' G rows; riding: () -> those of the references' rows before them.
    """
    if preset.concat is None:
        return Phase(alone)
    rows, size = len(placement.source), context_size(int(references.masks.sum()), references.masks.size)
    if preset.concat == "joined":
        joined = join(references.masks, references.grid, size)
        length = jnp.broadcast_to(joined.length, rows)
        return Phase(at_positions(alone, joined.positions), Routing(length=length), joined.tokens)
    routing = context_routing(references.masks, placement, rows, references.grid, preset.concat, size)
    return Phase(riding(), routing)
