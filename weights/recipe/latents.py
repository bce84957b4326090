"""Stage 2: draw the training pictures, encode them, and keep latents and token ids on disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from transformers import CLIPTokenizer, T5Tokenizer

from jaxpa.encoders.autoencoder import Autoencoder
from weights.recipe.flow import Batch
from weights.recipe.world import dataset, render_many

CLIP_TOKENS = 32  # a caption and its end fit; the encoder is causal, so the padding beyond changes nothing


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


def encode(model: Autoencoder, images: np.ndarray, batch: int = 32) -> np.ndarray:
    """uint8 pictures (B, H, W, 3) -> latents (B, h, w, C) float16."""
    run = jax.jit(lambda m, x: m.encode_latents(x))
    parts = np.array_split(images, range(batch, len(images), batch))
    return np.concatenate([np.asarray(run(model, x.astype(np.float32) / 127.5 - 1), np.float16) for x in parts])


def prepare(file: Path, model: Autoencoder, pictures: int, seed: int, two: float = 0.05) -> Batch:
    """Latents and ids of the first `pictures` training pictures of the world `seed`; a share `two` has two subjects.

    Only pictures that `file` does not hold yet are drawn. The tokenizers lie beside it.
    """
    columns = [_read(file)] if file.exists() else []
    done = len(columns[0].latents) if columns else 0
    if done < pictures:
        tokenizers = Tokenizers(file.parent)
        for i, batch in enumerate(dataset(seed, pictures, workers=2, first=done, two=two)):
            columns.append(Batch(encode(model, batch.images), *tokenizers(batch.captions)))
            if i % 10 == 0:
                print(f"encoded {min(done + 512 * (i + 1), pictures)} of {pictures} pictures", flush=True)
        columns = [Batch(*(np.concatenate(column) for column in zip(*columns, strict=True)))]
        part = file.with_suffix(".part.npz")
        np.savez(part, **columns[0]._asdict())
        part.rename(file)
    return Batch(*(column[:pictures] for column in columns[0]))


def _read(file: Path) -> Batch:
    stored = np.load(file)
    return Batch(*(stored[name] for name in Batch._fields))


def held_out(out: Path, model: Autoencoder, count: int = 256) -> Batch:
    """Pictures of combinations that training never sees."""
    batch = render_many(seed=992, start=0, count=count, held_out=True)
    return Batch(encode(model, batch.images), *Tokenizers(out)(batch.captions))
