"""Stage 2: draw the training pictures, encode them, and keep tokens and captions' ids on disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors.numpy import load_file
from transformers import CLIPTokenizer, T5Tokenizer

from jaxpa.encoders.autoencoder import Autoencoder
from jaxpa.tokens import grid_positions, patchify
from weights.recipe.compositions import CANVASES, CELL, WHERE, dataset, numbered, usual
from weights.recipe.training import save_state
from weights.recipe.world import SIZE, render_many

CLIP_TOKENS = 32  # a caption and its end fit; the encoder is causal, so the padding beyond changes nothing
CHUNK = 1024  # pictures in a file


class Batch(NamedTuple):
    """tokens (B, N, C), t5_ids (B, M), clip_ids (B, CLIP_TOKENS), where (B, N, len(WHERE)), positions (N, 3).

    Arrays in which only N may differ from one canvas to another; canvases of as many tokens share their programs.
    """

    tokens: np.ndarray
    t5_ids: np.ndarray
    clip_ids: np.ndarray
    where: np.ndarray
    positions: np.ndarray

    def rows(self, index: np.ndarray) -> "Batch":
        tokens, t5_ids, clip_ids, where = (column[index] for column in self[:-1])
        return Batch(tokens, t5_ids, clip_ids, where, self.positions)


class Tokenizers:
    """Captions to padded ids of both encoders."""

    def __init__(self, folder: Path):
        self.clip = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.t5 = T5Tokenizer.from_pretrained(folder / "tokenizer_2")

    def __call__(self, captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """T5 ids (B, M) and CLIP ids (B, CLIP_TOKENS), int32."""

        def ids(tokenizer: Any, length: int) -> np.ndarray:
            padded = tokenizer(captions, padding="max_length", truncation=True, max_length=length)
            return np.asarray(padded.input_ids, np.int32)

        return ids(self.t5, self.t5.model_max_length), ids(self.clip, CLIP_TOKENS)

    def words(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of words of one token each, (K,) for T5 and for CLIP. ValueError: a word is not one token."""
        found = []
        for tokenizer in (self.t5, self.clip):
            ids = tokenizer(list(words), add_special_tokens=False).input_ids
            if any(len(each) != 1 for each in ids):
                raise ValueError(f"not one token each: {', '.join(words)}")
            found.append(np.asarray(ids, np.int32)[:, 0])
        return found[0], found[1]


_encode = jax.jit(lambda model, x: patchify(model.encode_latents(x)))


def encode(model: Autoencoder, images: np.ndarray, batch: int = 32) -> np.ndarray:
    """uint8 pictures (B, H, W, 3) -> tokens (B, N, C) float16."""
    parts = np.array_split(images, range(batch, len(images), batch))
    return np.concatenate([np.asarray(_encode(model, x.astype(np.float32) / 127.5 - 1), np.float16) for x in parts])


def positions(size: tuple[int, int]) -> np.ndarray:
    """Of the tokens of a picture of (H, W) pixels, (N, 3)."""
    return np.asarray(grid_positions(size[0] // CELL, size[1] // CELL))


def prepare(folder: Path, model: Autoencoder, pictures: int, seed: int) -> list[Batch]:
    """About `pictures` training pictures, one batch for each canvas.

    They lie in files of CHUNK pictures under `folder`/pictures, each written once; the tokenizers lie in `folder`.
    """
    tokenizers = Tokenizers(folder)
    return [
        _prepare_canvas(folder / "pictures", model, tokenizers, size, count, seed) for size, count in _counts(pictures)
    ]


def _counts(pictures: int) -> list[tuple[tuple[int, int], int]]:
    """How many pictures each canvas has."""
    return [((height, width), max(2, round(share * pictures))) for height, width, share in CANVASES]


def which_are_usual(pictures: int, seed: int) -> list[np.ndarray]:
    """Of each batch of `prepare`, the pictures that are usual ones, (B,) bool."""
    return [
        np.array([usual(numbered(seed, size, number)) for number in range(count)]) for size, count in _counts(pictures)
    ]


def _prepare_canvas(
    folder: Path, model: Autoencoder, tokenizers: Tokenizers, size: tuple[int, int], count: int, seed: int
) -> Batch:
    folder.mkdir(exist_ok=True)
    files = [folder / f"{size[0]}x{size[1]}-{i:04d}.safetensors" for i in range(-(-count // CHUNK))]
    done = sum(file.exists() for file in files)
    made = dataset(seed, size, done * CHUNK, count, CHUNK)
    for file, (images, where, captions) in zip(files[done:], made, strict=True):
        save_state(file, (encode(model, images), *tokenizers(captions), where))
        print(f"drew {file.stem} of {len(files)}", flush=True)
    stored = [load_file(file) for file in files]
    tokens, t5_ids, clip_ids, where = (np.concatenate([each[f"{i:05d}"] for each in stored]) for i in range(4))
    return Batch(tokens, t5_ids, clip_ids, where, positions(size))


def held_out(out: Path, model: Autoencoder, count: int = 256) -> Batch:
    """Pictures of combinations that training never sees, as the evaluations draw them."""
    batch = render_many(seed=992, start=0, count=count, held_out=True)
    tokens = encode(model, batch.images)
    where = np.zeros((*tokens.shape[:2], len(WHERE)), np.float16)
    return Batch(tokens, *Tokenizers(out)(batch.captions), where, positions((SIZE, SIZE)))
