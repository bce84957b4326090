"""A loaded checkpoint as functions of arrays: text, pictures, flow times and velocities.

    text -> .txt, .vec      pictures -> tokens      tokens -> pictures      text, guidance -> velocity(x, t)

Every function runs under `jax.jit` with the networks as arguments, so other weights of the same shapes compile
nothing. `jaxpa.pipeline` is about pictures: it draws and pastes them.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from jaxpa import inversion, sampling
from jaxpa.adapters.lay import over
from jaxpa.adapters.spec import Lora, Loras, to_loras
from jaxpa.backbones.registry import backbone_of
from jaxpa.checkpoint.load import Parts
from jaxpa.checkpoint.redux import Redux
from jaxpa.checkpoint.stages import Staged
from jaxpa.config import Settings
from jaxpa.devices.memory import Held
from jaxpa.devices.sharding import over_rows
from jaxpa.encoders import text
from jaxpa.encoders.text import TextEmbedding, Tokenizers
from jaxpa.errors import JaxpaError, quoted
from jaxpa.errors import text as words
from jaxpa.media import images
from jaxpa.media.edits import Followed, MaskedPicture, StartPicture
from jaxpa.media.images import Picture
from jaxpa.media.subjects import References
from jaxpa.presets import Preset
from jaxpa.request.prepare import Pictures
from jaxpa.request.request import Request
from jaxpa.request.spec import Spec
from jaxpa.runs import OnStep, Step, followed_back, inverted
from jaxpa.sampling import Accompanied, Conditions, Guided, Velocity
from jaxpa.solvers import Name
from jaxpa.tokens import grid_positions, patchify, pixel_channels, unpatchify

_encode = jax.jit(lambda vae, x: patchify(vae.encode_latents(x)).astype(jnp.float32))
_decode = jax.jit(lambda vae, x, h, w: vae.decode_latents(unpatchify(x, h, w)), static_argnums=(2, 3))
_row = jax.jit(lambda x, k: jax.lax.dynamic_slice_in_dim(x, k, 1))
_redux = jax.jit(lambda encoder, embedder, pixels: embedder(encoder(pixels).states))
_noise = jax.jit(sampling.initial_noise, static_argnums=1)
_positions = jax.jit(grid_positions, static_argnums=(0, 1))
_picture = jax.jit(partial(grid_positions, index=1), static_argnums=(0, 1))
_noised = jax.jit(sampling.noised)
_closed_form, _line = jax.jit(inversion.closed_form), jax.jit(inversion.straight_line)
_pixels = jax.jit(pixel_channels, static_argnums=1)

REFERENCE_SEED = 1 << 31  # the first reference's noise; images usually count from 0


class Beside(NamedTuple):
    """What the network reads of a picture beside the sampled tokens.

    channels (1, N, C'): further channels of each of them; tokens (1, K, C) and positions (K, 3): of the same sequence.
    """

    channels: jax.Array | None = None
    tokens: jax.Array | None = None
    positions: jax.Array | None = None

    def given(self, conditions: Any, rows: int, spread: Callable[[jax.Array], jax.Array]) -> Conditions:
        """The conditions of so many rows, with this; spread: puts arrays (B, ...) where their rows belong."""
        if self.channels is not None:
            channels = jnp.broadcast_to(self.channels, (rows, *self.channels.shape[1:]))
            return replace(conditions, channels=spread(channels))
        assert self.tokens is not None
        assert self.positions is not None
        return Accompanied(conditions, self.tokens, self.positions)


def _opening(text: TextEmbedding, references: int, first: TextEmbedding, time: float) -> Any:
    """What rows [references; images; negative] read at first, and down to which flow times: the images another text."""
    rest = references + len(first)
    times = np.ones(len(text), np.float32)
    times[references:rest] = time
    parts = text[:references], first, text[rest:]
    return times, TextEmbedding.concatenate([part for part in parts if len(part)])


@dataclass(frozen=True)
class Model:
    """`parts` holds the networks, `settings` what suits the checkpoint where a call says nothing."""

    parts: Parts | Staged
    tokenizers: Tokenizers
    mesh: Mesh | None = None  # the devices that the networks and the rows of a batch are spread over
    merged: tuple[Lora, ...] = ()  # LoRAs in the weights themselves
    redux: Redux | None = None  # what makes text tokens of a picture

    def __repr__(self) -> str:  # of all its networks, it would have thousands of lines
        return f"<{type(self).__name__}: {self.spec.variant.title}, {self.dtype.name}>"

    def on_devices(self) -> AbstractContextManager[Any]:
        """Where the programs run: within this, kernels that XLA cannot partition find the mesh."""
        return nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def spread(self, tree: Any) -> Any:
        """Arrays (B, ...) with their rows over the mesh."""
        return tree if self.mesh is None else over_rows(self.mesh, tree)

    def with_loras(self, loras: Loras) -> Self:
        """This checkpoint with other LoRAs (none: ()), kept beside its weights, which the two pipelines share.

        Programs are compiled again only for LoRAs of another rank. Raises JaxpaError if there are merged ones.
        """
        if self.merged:
            raise JaxpaError(
                f"{', '.join(map(str, self.merged))} is merged into the weights: load with keep_loras=True"
            )
        loras, bare = to_loras(loras), self.parts.bare or self.parts
        parts = bare.over(over(bare.config, loras, keep=True)) if loras else bare
        return replace(self, parts=parts)

    @property
    def spec(self) -> Spec:
        """Sizes, schedule and settings, as the headers gave them."""
        return Spec(self.parts.config, self.parts.settings)

    @property
    def settings(self) -> Settings:
        return self.parts.settings

    @property
    def dtype(self) -> np.dtype:
        """Of the transformer's weights."""
        return self.parts.dtype

    @property
    def held(self) -> Held:
        """How the networks are in memory, as the device's plan wants to know it."""
        redux = sum(x.size for x in jax.tree.leaves(self.redux))
        return Held(self.dtype.itemsize, self.parts.weights, self.parts.resident, self.parts.kept, redux)

    @property
    def embeds_guidance(self) -> bool:
        return self.spec.embeds_guidance

    @property
    def cell(self) -> int:
        """Pixels along a side of a token."""
        return self.spec.cell

    def grid(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """The canvas in tokens (h, w); see `Spec.grid`."""
        return self.spec.grid(height, width)

    def times(self, steps: int | None, grid: tuple[int, int]) -> np.ndarray:
        """The flow times of a schedule, (S + 1,); see `Spec.times`."""
        return self.spec.times(steps, grid)

    def noise(self, seeds: np.ndarray, grid: tuple[int, int]) -> jax.Array:
        """Start noise, each image from its own seed: seeds (B,) -> (B, N, C)."""
        return self.spread(_noise(seeds, (grid[0] * grid[1], self.parts.config.transformer.velocity_channels)))

    def encode_text(self, prompts: str | Sequence[str], on_step: OnStep | None = None) -> TextEmbedding:
        """Prompts (a string is one) -> .txt (B, M, Dt), .vec (B, Dv). on_step: hears of each that is encoded.

        Warns if an encoder does not read all of a prompt. Raises JaxpaError for anything but text.
        """
        if not isinstance(prompts, str | Sequence) or isinstance(prompts, bytes):
            raise JaxpaError(f"prompts must be a string or a list of strings, not {quoted(prompts)}")
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts:
            raise JaxpaError("there is no prompt to encode")
        prompts = [words("a prompt", each) for each in prompts]
        rows: dict[str, TextEmbedding] = {} if isinstance(self.parts, Parts) else self.parts.texts
        if new := [prompt for prompt in dict.fromkeys(prompts) if prompt not in rows]:
            clip_ids, t5_ids, _ = self.tokenizers.tokenize(new, self.settings.max_length)
            # One at a time: a batch of another size needs no program of its own.
            for k, (prompt, t5_row, clip_row) in enumerate(zip(new, t5_ids[:, None], clip_ids[:, None], strict=True)):
                rows[prompt] = text.encode(self.parts.text_encoder_2, self.parts.text_encoder, t5_row, clip_row)
                if on_step is not None:
                    jax.block_until_ready(rows[prompt])
                    on_step(Step("encode", k + 1, len(new)))
        return TextEmbedding.concatenate([rows[prompt] for prompt in prompts])

    def encode_ahead(self, request: Request, captions: Sequence[str] = (), on_step: OnStep | None = None) -> None:
        """Where networks take turns, encode all texts of a request while the encoders are there."""
        if isinstance(self.parts, Parts):
            return
        said = request.sampling
        guided = request.guided(self.spec)
        prompts = request.prompts if request.reads_text else ()
        around = request.method.surroundings
        texts = [*captions, *prompts, *[said.negative_prompt or ""] * guided, *[around] * (around is not None)]
        self.parts.texts.clear()
        jax.block_until_ready(self.encode_text(texts, on_step) if texts else None)

    def encode_image_prompt(self, picture: Picture) -> jax.Array:
        """What FLUX.1-Redux makes of a picture: text tokens (1, M', Dt), for `TextEmbedding.extended`."""
        if self.redux is None:
            raise JaxpaError("an image prompt needs FLUX.1-Redux: name its folder or hub id with redux (--redux)")
        side = self.redux.encoder.config.image_size
        return _redux(*self.redux, images.squared(images.read_image(picture), side)[None])

    def prompt_rows(
        self, request: Request, embedded: TextEmbedding | None, which: np.ndarray, image: jax.Array | None
    ) -> TextEmbedding:
        """Those of a request's prompts, a row each; embedded: all, if they are; image: text tokens of a picture.

        A picture without words follows zeros, as in the reference.
        """
        if embedded is not None:
            text = embedded[which]
        elif request.reads_text:
            text = self.encode_text([request.prompts[k] for k in which])
        else:
            config, rows = self.parts.config.transformer, len(which)
            txt = jnp.zeros((rows, self.settings.max_length, config.joint_attention_dim), self.dtype)
            text = TextEmbedding(txt, jnp.zeros((rows, config.pooled_projection_dim), self.dtype))
        return text if image is None else text.extended(image)

    def read_embedding(self, embedding: str | os.PathLike[str] | TextEmbedding) -> TextEmbedding:
        """Encoded prompts, or the file that has them, in this checkpoint's widths. Raises JaxpaError for others."""
        name = "the embedding" if isinstance(embedding, TextEmbedding) else str(embedding)
        embedding = embedding if isinstance(embedding, TextEmbedding) else TextEmbedding.load(embedding)
        config = self.parts.config.transformer
        wanted = config.joint_attention_dim, config.pooled_projection_dim
        found = embedding.txt.shape[-1], embedding.vec.shape[-1]
        if found != wanted:
            raise JaxpaError(f"{name} was made by another checkpoint: its txt and vec are {found} wide, not {wanted}")
        return embedding

    def repeated_prompt(self, request: Request, count: int) -> TextEmbedding:
        """The one prompt of a request with references, encoded, in so many rows. Raises JaxpaError."""
        if request.embedding is None:
            return self.encode_text(list(request.prompts) * count)
        embedded = self.read_embedding(request.embedding)
        if len(embedded) != 1:
            raise JaxpaError(f"{request.verb} takes one prompt: the embedding has {len(embedded)}")
        if embedded.txt.shape[1] != self.settings.max_length:
            raise JaxpaError(
                f"the embedding has {embedded.txt.shape[1]} text tokens, and captions of references have "
                f"{self.settings.max_length}: encode the prompt with this checkpoint"
            )
        return embedded[np.zeros(count, int)]

    def encode_image(self, pictures: Picture | Sequence[Picture]) -> jax.Array:
        """Pictures of one size, or an array (B, H, W, 3) in [-1, 1] -> tokens (B, N, C)."""
        if isinstance(pictures, np.ndarray | jax.Array) and pictures.ndim == 4:
            array = np.asarray(pictures, np.float32)
        else:
            each = pictures if isinstance(pictures, list | tuple) else [pictures]
            read = [images.read_image(one) for one in each]  # type: ignore[arg-type]
            if len(sizes := {one.size for one in read}) != 1:
                raise JaxpaError(f"pictures must be of one size, not of {len(sizes)}")
            array = np.stack([images.to_array(one, one.height, one.width) for one in read])
        self.grid(array.shape[1], array.shape[2])
        # One by one: the program for one picture serves any number, and so does its memory.
        return jnp.concatenate([_encode(self.parts.vae, array[k : k + 1]) for k in range(len(array))])

    def beside(self, pictures: Pictures | None) -> Beside | None:
        """What this network reads of a request's pictures, itself; None: nothing."""
        reads = self.spec.variant.reads
        if isinstance(pictures, MaskedPicture) and reads == "fill":
            mask = _pixels(pictures.change[None], self.parts.config.vae.downscale)
            return Beside(jnp.concatenate([self.encode_image(pictures.kept[None]), mask], -1))
        if isinstance(pictures, Followed):
            tokens = self.encode_image(pictures.picture[None])
            if reads == "control":
                return Beside(tokens)
            return Beside(tokens=tokens, positions=_picture(*self.grid(*pictures.picture.shape[:2])))
        control = getattr(pictures, "control", None)
        return None if control is None else Beside(self.encode_image(control[None]))

    def encode_start(self, pictures: Pictures | None) -> jax.Array | None:
        """The tokens (1, N, C) of the picture that a request starts from; None: it starts from noise."""
        return self.encode_image(pictures.picture[None]) if isinstance(pictures, StartPicture) else None

    def started(self, start: jax.Array | None, noise: jax.Array, times: np.ndarray) -> jax.Array:
        """Noise (B, N, C), or what belongs to the first time on the line from a picture's tokens to it."""
        return noise if start is None else _noised(start, noise, times[0])

    def decode(
        self,
        tokens: jax.Array,
        height: int | None = None,
        width: int | None = None,
        on_step: OnStep | None = None,
    ) -> list[Image.Image]:
        """Tokens (B, N, C) -> B pictures, decoded one by one."""
        grid, made = self.grid(height, width), []
        tokens = jax.block_until_ready(tokens)  # what made them may leave
        for k in range(len(tokens)):
            (each,) = _decode(self.parts.vae, _row(tokens, k), *grid)
            made.append(images.to_image(np.asarray(each, np.float32)))
            if on_step is not None:
                on_step(Step("decode", k + 1, len(tokens)))
        return made

    def velocity(
        self,
        text: TextEmbedding,
        *,
        height: int | None = None,
        width: int | None = None,
        guidance: float | None = None,
        negative: TextEmbedding | None = None,
    ) -> Velocity:
        """A callable (x (B, N, C), t (B,)) -> (B, N, C) for embedded prompts, itself a pytree.

        guidance is embedded where the checkpoint learned it; elsewhere, above 1, it is classifier-free and needs
        `negative`, the embedding of what it pushes away from (None: the empty prompt).
        """
        guidance = self.spec.guidance(guidance)
        if negative is None:
            negative = self.negative(None, guidance, len(text))
        return self.conditions(text, self.grid(height, width), guidance, negative).bind(self.parts.transformer)

    def conditions(
        self,
        text: TextEmbedding,
        grid: tuple[int, int],
        guidance: float,
        negative: TextEmbedding | None,
        references: int = 0,
        inside: float | None = None,
        scale: jax.Array | None = None,
        beside: Beside | None = None,
        opening: tuple[TextEmbedding, float] | None = None,
    ) -> Conditions:
        """The conditions of [references; images], R + G rows of `text`; references are not guided classifier-free.

        negative: G rows; None: no classifier-free guidance. inside: the guidance that the references embed (None: the
        images'). scale: (G, N, 1), a classifier-free guidance of each token's own. beside: what is read of a picture;
        a network that draws nothing without one raises JaxpaError. opening: what the images read in place of their G
        rows of text, and down to which flow time.
        """
        if beside is None:
            self.spec.check_text_alone()
        positions, plain_conditions = _positions(*grid), backbone_of(self.parts.config.transformer).conditions

        def conditions(text: TextEmbedding, rows: np.ndarray | None) -> Conditions:
            first = {} if opening is None else {"opening": self.spread(_opening(text, references, *opening))}
            made = plain_conditions(text, rows, positions, **first)
            return made if beside is None else beside.given(made, len(text), self.spread)

        if self.embeds_guidance:
            rows = np.full(len(text), guidance, np.float32)
            rows[:references] = guidance if inside is None else inside
            text, rows = self.spread((text, rows))
            return conditions(text, rows)
        if negative is None:
            return conditions(self.spread(text), None)
        plain = conditions(self.spread(TextEmbedding.concatenate([text, negative])), None)
        return Guided(plain, jnp.float32(guidance) if scale is None else scale, references)

    def guided(self, *arguments: Any, **keywords: Any) -> Velocity:
        """The velocity of `conditions`."""
        return self.conditions(*arguments, **keywords).bind(self.parts.transformer)

    def negative(self, prompt: str | None, guidance: float, count: int) -> TextEmbedding | None:
        """The rows that guidance pushes away from, where this checkpoint needs them."""
        if self.embeds_guidance:
            if prompt:
                raise JaxpaError("this checkpoint embeds its guidance: a negative prompt would have no effect")
            return None
        return self.encode_text([prompt or ""] * count) if guidance > 1 else None

    def trajectory(
        self,
        references: References,
        preset: Preset,
        times: np.ndarray,
        on_step: OnStep | None = None,
        solver: Name = "euler",
    ) -> jax.Array:
        """The references at every flow time of a schedule: (S + 1, R, N, C). Their noise has seeds of their own.

        solver: of the model's own flow (path "ode"); RF inversion is defined by its Euler steps.
        """
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
            return _line(x0, inverted(velocity, x0, noise, official, preset.gamma, on_step)[-1], times)
        if solver != "euler":
            return followed_back(velocity, x0, times, on_step, solver)[::-1]
        return inverted(velocity, x0, noise, inversion.forward_times(times), 0.0, on_step, preset.sweeps)[::-1]
