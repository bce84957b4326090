"""Prompts -> text embedding: the two tokenizers, the two encoders, and their results as one value.

CLIP's pooled vector becomes FLUX's `vec`, T5's states its text tokens `txt`. Tokenizers come from a local folder in
diffusers' layout and need no torch; nothing here goes online.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.flax import save as to_bytes

from jaxpa.encoders.clip import CLIPTextEncoder
from jaxpa.encoders.t5 import T5Encoder
from jaxpa.encoders.vocabulary import Kind, find_files
from jaxpa.errors import CheckpointError, JaxpaError, warn
from jaxpa.replacing import replacing


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class TextEmbedding:
    """What FLUX reads of a batch of prompts; a pytree."""

    txt: jax.Array  # (B, M, Dt), T5
    vec: jax.Array  # (B, Dv), CLIP

    def __len__(self) -> int:
        return self.txt.shape[0]

    def __getitem__(self, rows: int | slice | Sequence[int] | np.ndarray) -> "TextEmbedding":
        """An embedding of some rows; an int keeps the row axis. Raises IndexError outside the batch."""
        index = np.arange(len(self))[rows].reshape(-1)
        return TextEmbedding(self.txt[index], self.vec[index])

    def __iter__(self) -> Iterator["TextEmbedding"]:
        return (self[row] for row in range(len(self)))

    @staticmethod
    def concatenate(parts: Sequence["TextEmbedding"]) -> "TextEmbedding":
        """The rows of all the parts. Raises ValueError where token counts or widths differ."""
        if not parts:
            raise ValueError("no text embeddings to concatenate")
        shapes = {(part.txt.shape[1:], part.vec.shape[1:]) for part in parts}
        if len(shapes) > 1:
            raise ValueError(f"text embeddings of different shapes: {sorted(shapes)}")
        return _concatenate(*parts)

    def extended(self, tokens: jax.Array) -> "TextEmbedding":
        """The same with more text tokens (1 | B, M', Dt) behind its own."""
        return _extend(self, tokens)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `txt` and `vec` as .safetensors; a reader sees the old file or the whole new one."""
        with replacing(Path(path)) as file:
            file.write(to_bytes({"txt": self.txt, "vec": self.vec}))  # save_file would make it private

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote, in its dtype. Raises CheckpointError, which names the file and every fault."""
        tensors: dict[str, jax.Array] = {}
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
            raise CheckpointError(f"{path} is not a file")
        try:
            with safe_open(path, framework="flax") as file:
                kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
                problems = [f"{name} is missing" for name in ("txt", "vec") if name not in kinds]
                problems += [f"{name} does not belong there" for name in kinds if name not in ("txt", "vec")]
                for name, kind in kinds.items():
                    if kind not in ("F64", "F32", "F16", "BF16"):
                        problems.append(f"{name} has the type {kind}, which no encoder writes")
                if not problems:
                    tensors = {name: file.get_tensor(name) for name in kinds}
        except SafetensorError as error:
            raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error
        if not problems:
            txt, vec = tensors["txt"], tensors["vec"]
            if txt.ndim != 3 or vec.ndim != 2 or txt.shape[0] != vec.shape[0] or not (txt.size and vec.size):
                problems.append(f"txt {txt.shape} and vec {vec.shape} should be (B, M, Dt) and (B, Dv), none of them 0")
            problems += [f"{name} is not finite" for name, x in tensors.items() if not jnp.isfinite(x).all()]
        if problems:
            raise CheckpointError(f"{path} is not a text embedding", problems)
        return cls(tensors["txt"], tensors["vec"])


@jax.jit
def _concatenate(*parts: TextEmbedding) -> TextEmbedding:
    return jax.tree.map(lambda *rows: jnp.concatenate(rows), *parts)


@jax.jit
def _extend(text: TextEmbedding, tokens: jax.Array) -> TextEmbedding:
    tokens = jnp.broadcast_to(tokens, (len(text), *tokens.shape[1:])).astype(text.txt.dtype)
    return TextEmbedding(jnp.concatenate([text.txt, tokens], 1), text.vec)


@jax.jit
def encode(t5: T5Encoder, clip: CLIPTextEncoder, t5_ids: jax.Array, clip_ids: jax.Array) -> TextEmbedding:
    """Ids for T5 (B, M) and for CLIP (B, 77) -> embedding. As in FLUX, T5 reads the padding too."""
    return TextEmbedding(t5(t5_ids), clip(clip_ids).pooled)  # (B, M, Dt), (B, Dv)


SHOWN = 200  # characters of what is cut


@dataclass(frozen=True)
class CutPrompt:
    """The end of a prompt that an encoder does not read."""

    index: int  # of the prompt
    encoder: str  # "CLIP" or "T5"
    limit: int  # tokens that the encoder reads, the special ones included
    text: str  # what is cut

    def __str__(self) -> str:
        rest = " (CLIP makes only the pooled vector; the text tokens are T5's)" if self.encoder == "CLIP" else ""
        text = self.text if len(self.text) <= SHOWN else f"{self.text[:SHOWN]} ..."
        return f"prompt {self.index} is longer than {self.encoder}'s {self.limit} tokens, cut: {text!r}{rest}"


class Tokenizers:
    """CLIP's and T5's tokenizer, from `tokenizer/` and `tokenizer_2/` of a diffusers folder."""

    def __init__(self, clip: Any, t5: Any):
        """Two fast tokenizers of transformers."""
        self.clip, self.t5 = clip, t5
        # A tokenizer without a limit has a huge number here; FLUX's CLIP has 77 positions.
        self.clip_length: int = min(clip.model_max_length, 77)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], t5_folder: str | os.PathLike[str] | None = None) -> Self:
        """Read both tokenizers; t5_folder: the folder that has `tokenizer_2/`, if `folder` has not.

        Raises CheckpointError, which names the folder of a tokenizer that is missing, lacks files, or cannot be read.
        """
        # Without torch, transformers warns on import that it has no models; tokenizers need none.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        from transformers import CLIPTokenizer, T5Tokenizer  # here: the import takes a second

        first, second = Path(folder) / "tokenizer", Path(folder if t5_folder is None else t5_folder) / "tokenizer_2"
        clip = _load_tokenizer(CLIPTokenizer.from_pretrained, first, "tokenizer")
        return cls(clip, _load_tokenizer(T5Tokenizer.from_pretrained, second, "tokenizer_2"))

    def tokenize(
        self, prompts: str | Sequence[str], max_length: int = 512
    ) -> tuple[np.ndarray, np.ndarray, list[CutPrompt]]:
        """Prompts (a string is one) -> ids of CLIP (B, 77) and of T5 (B, max_length), int32, and what did not fit.

        Both are padded or cut to their length. For each encoder, every distinct prompt that is cut gives a warning.
        """
        if isinstance(prompts, str):
            prompts = [prompts]
        prompts = list(prompts)
        if bad := [each for each in prompts if not isinstance(each, str)]:
            raise TypeError(f"a prompt must be a string, not {bad[0]!r}")
        clip_ids, clip_cut = _tokenize(self.clip, "CLIP", prompts, self.clip_length)
        t5_ids, t5_cut = _tokenize(self.t5, "T5", prompts, max_length)
        cut = sorted(clip_cut + t5_cut, key=lambda c: c.index)
        said: set[tuple[str, str]] = set()
        for one in cut:
            if (key := (prompts[one.index], one.encoder)) not in said:
                said.add(key)
                warn(str(one))
        return clip_ids, t5_ids, cut

    def word_tokens(self, prompt: str, word: str, max_length: int = 512) -> np.ndarray:
        """Positions of a word, or of several, in T5's sequence of `max_length` tokens -> (n,) int32, ascending.

        Only whole words match, in upper or lower case; every occurrence counts, with all its tokens. Raises JaxpaError
        if the prompt does not have the word, or only in the part that is cut.
        """
        spans = word_spans(prompt, word)
        full = self.t5(prompt, return_offsets_mapping=True, verbose=False)
        kept = full["offset_mapping"][: max_length - 1]  # the last place is the end token's
        found = [
            i for i, (start, stop) in enumerate(kept) if any(start < b and a < stop for a, b in spans)
        ]  # an end token spans nothing
        if not found:
            raise JaxpaError(f"the word {word!r} is beyond the {max_length} tokens that T5 reads of {prompt!r}")
        return np.asarray(found, np.int32)


def word_spans(text: str, word: str) -> list[tuple[int, int]]:
    """Where a word, or several, stand in a text, as whole words in upper or lower case. JaxpaError: nowhere."""
    pattern = r"\s+".join(re.escape(part) for part in word.split())
    spans = [m.span() for m in re.finditer(rf"(?<!\w){pattern}(?!\w)", text, re.IGNORECASE)]
    if not pattern or not spans:
        raise JaxpaError(f"the word {word!r} is not in {text!r}")
    return spans


def _load_tokenizer(from_pretrained: Callable[..., Any], folder: Path, kind: Kind) -> Any:
    find_files(folder, kind)
    try:
        tokenizer = from_pretrained(folder, local_files_only=True)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a bad file makes the Rust part panic, which is not an Exception
        raise CheckpointError(f"the tokenizer in {folder} cannot be read: {error}") from error
    if not tokenizer.get_vocab():
        raise CheckpointError(f"the tokenizer in {folder} has no words")
    return tokenizer


def _tokenize(tokenizer: Any, encoder: str, prompts: Sequence[str], length: int) -> tuple[np.ndarray, list[CutPrompt]]:
    """Ids (B, length), padded or cut, and the text that is cut."""
    if not prompts:
        return np.zeros((0, length), np.int32), []
    padded = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True)
    whole = tokenizer(list(prompts), return_offsets_mapping=True, verbose=False)
    cut = []
    for index, (ids, offsets) in enumerate(zip(whole["input_ids"], whole["offset_mapping"], strict=True)):
        if len(ids) > length:  # the end token takes the last place
            cut.append(CutPrompt(index, encoder, length, prompts[index][offsets[length - 1][0] :]))
    return np.asarray(padded["input_ids"], np.int32), cut
