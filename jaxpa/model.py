"""A loaded checkpoint as functions of arrays: text, pictures, flow times and velocities.

    text -> .txt, .vec      pictures -> tokens      tokens -> pictures      text, guidance -> velocity(x, t)

Every function runs under `jax.jit` with the networks as arguments, so that other weights of the same shapes compile
nothing. What is drawn and pasted with pictures is in `jaxpa.pipeline`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxpa import sampling
from jaxpa.checkpoint.load import Parts
from jaxpa.config import Settings
from jaxpa.encoders import text
from jaxpa.encoders.text import TextEmbedding, Tokenizers
from jaxpa.errors import JaxpaError
from jaxpa.media import images
from jaxpa.media.images import Picture
from jaxpa.sampling import ClassifierFree, Velocity
from jaxpa.schedule import flow_times
from jaxpa.tokens import PATCH, grid_positions, patchify, unpatchify
from jaxpa.transformer import FluxVelocity

MAX_PIXELS = 2048 * 2048
MAX_STEPS = 1000
MAX_SEED = 2**32 - 1

_encode = jax.jit(lambda vae, x: patchify(vae.encode_latents(x)).astype(jnp.float32))
_decode = jax.jit(lambda vae, x, h, w: vae.decode_latents(unpatchify(x, h, w)), static_argnums=(2, 3))
_noise = jax.jit(sampling.initial_noise, static_argnums=1)
_positions = jax.jit(grid_positions, static_argnums=(0, 1))


@dataclass(frozen=True)
class Model:
    """`parts` holds the networks, `settings` what suits the checkpoint where a call says nothing."""

    parts: Parts
    tokenizers: Tokenizers

    @property
    def settings(self) -> Settings:
        return self.parts.settings

    @property
    def dtype(self) -> np.dtype:
        """Of the transformer's weights."""
        return np.dtype(self.parts.transformer.dtype)

    @property
    def embeds_guidance(self) -> bool:
        return self.parts.config.transformer.guidance_embeds

    @property
    def cell(self) -> int:
        """Pixels along a side of a token."""
        return PATCH * self.parts.config.vae.downscale

    def grid(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """The canvas in tokens (h, w). Raises JaxpaError for a size that is no multiple of a token's."""
        size = self.settings.size
        height, width = size if height is None else height, size if width is None else width
        near = [max(1, round(side / self.cell)) * self.cell for side in (height, width)]
        if [height, width] != near:
            raise JaxpaError(
                f"{width} x {height} pixels cannot be cut into tokens of {self.cell} x {self.cell}: "
                f"the nearest valid size is {near[1]} x {near[0]}"
            )
        if height * width > MAX_PIXELS:
            raise JaxpaError(f"{width} x {height} pixels are out of range: at most {MAX_PIXELS // 2**20} megapixels")
        return height // self.cell, width // self.cell

    def times(self, steps: int | None, grid: tuple[int, int]) -> np.ndarray:
        """The flow times of a schedule, (S + 1,). Raises JaxpaError for a number of steps out of range."""
        steps = self.settings.steps if steps is None else steps
        if not 1 <= steps <= MAX_STEPS:
            raise JaxpaError(f"steps must be 1 to {MAX_STEPS}, not {steps}")
        return flow_times(steps, grid[0] * grid[1], self.parts.config.scheduler)

    def noise(self, seeds: np.ndarray, grid: tuple[int, int]) -> jax.Array:
        """Start noise, each image from its own seed: seeds (B,) -> (B, N, C)."""
        return _noise(seeds, (grid[0] * grid[1], self.parts.config.transformer.in_channels))

    def encode_text(self, prompts: Sequence[str]) -> TextEmbedding:
        """Prompts -> .txt (B, M, Dt), .vec (B, Dv). Warns of what an encoder does not read of a prompt."""
        clip_ids, t5_ids, _ = self.tokenizers.tokenize(list(prompts), self.settings.max_length)
        rows: dict[str, TextEmbedding] = {}  # one at a time: a batch of another size needs no program of its own
        for prompt, t5_row, clip_row in zip(prompts, t5_ids[:, None], clip_ids[:, None], strict=True):
            if prompt not in rows:
                rows[prompt] = text.encode(self.parts.text_encoder_2, self.parts.text_encoder, t5_row, clip_row)
        return TextEmbedding.concatenate([rows[prompt] for prompt in prompts])

    def encode_image(self, pictures: Picture | Sequence[Picture]) -> jax.Array:
        """Pictures of one size, or an array (B, H, W, 3) in [-1, 1] -> tokens (B, N, C)."""
        if isinstance(pictures, np.ndarray | jax.Array) and pictures.ndim == 4:
            array = np.asarray(pictures, np.float32)
        else:
            each = pictures if isinstance(pictures, list | tuple) else [pictures]
            read = [images.read_image(one) for one in each]  # type: ignore[arg-type]
            array = np.stack([images.to_array(one, one.height, one.width) for one in read])
        self.grid(array.shape[1], array.shape[2])
        return _encode(self.parts.vae, array)

    def decode(self, tokens: jax.Array, height: int | None = None, width: int | None = None) -> list[Image.Image]:
        """Tokens (B, N, C) -> B pictures."""
        decoded = np.asarray(_decode(self.parts.vae, tokens, *self.grid(height, width)), np.float32)
        return [images.to_image(each) for each in decoded]

    def velocity(
        self, text: TextEmbedding, *, height: int | None = None, width: int | None = None,
        guidance: float | None = None, negative: TextEmbedding | None = None,
    ) -> Velocity:  # fmt: skip
        """A callable (x (B, N, C), t (B,)) -> (B, N, C) for embedded prompts, itself a pytree.

        guidance is embedded where the checkpoint learned it; elsewhere, above 1, it is classifier-free and needs
        `negative`, the embedding of what it pushes away from (None: the empty prompt).
        """
        guidance = self.settings.guidance if guidance is None else guidance
        if negative is None:
            negative = self.negative(None, guidance, len(text))
        return self.guided(text, self.grid(height, width), guidance, negative)

    def guided(
        self, text: TextEmbedding, grid: tuple[int, int], guidance: float, negative: TextEmbedding | None,
        references: int = 0, inside: float | None = None, scale: jax.Array | None = None,
    ) -> Velocity:  # fmt: skip
        """The velocity of [references; images], R + G rows of `text`; references are not guided classifier-free.

        negative: G rows; None: no classifier-free guidance. inside: the guidance that the references embed (None: the
        images'). scale: (G, N, 1), a classifier-free guidance of each token's own.
        """
        model, positions = self.parts.transformer, _positions(*grid)
        if self.embeds_guidance:
            rows = np.full(len(text), guidance, np.float32)
            rows[:references] = guidance if inside is None else inside
            return FluxVelocity(model, text.txt, text.vec, jnp.asarray(rows), positions)
        if negative is None:
            return FluxVelocity(model, text.txt, text.vec, None, positions)
        both = TextEmbedding.concatenate([text, negative])
        plain = FluxVelocity(model, both.txt, both.vec, None, positions)
        return ClassifierFree(plain, jnp.float32(guidance) if scale is None else scale, references)

    def negative(self, prompt: str | None, guidance: float, count: int) -> TextEmbedding | None:
        """The rows that guidance pushes away from, where this checkpoint needs them."""
        if self.embeds_guidance:
            if prompt:
                raise JaxpaError("this checkpoint embeds its guidance: a negative prompt would have no effect")
            return None
        return self.encode_text([prompt or ""] * count) if guidance > 1 else None


def seeds_of(seed: int | Sequence[int], count: int) -> np.ndarray:
    """One seed for each image: `seed`, `seed + 1`, ..., or those that are listed, (B,) uint32."""
    seeds = [seed + k for k in range(count)] if isinstance(seed, int) else list(seed)
    if bad := [each for each in seeds if not 0 <= each <= MAX_SEED]:
        raise JaxpaError(f"a seed must be 0 to {MAX_SEED}, not {bad[0]}")
    return np.asarray(seeds, np.uint32)
