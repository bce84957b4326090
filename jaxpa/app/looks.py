"""Attention of a run, as bytes that the page lights its cells with: a word or a cell looks, and cells and words light.

Every row of the tables is stretched to its own largest value: a page shows where attention goes, not how much of it.
"""

import base64
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from jaxpa.attention.observe import Attention
from jaxpa.encoders.text import Tokenizers
from jaxpa.errors import JaxpaError

MAPS = 2**30  # bytes of the maps that a page keeps
MOST = 1024  # cells that a page can draw


@dataclass(frozen=True)
class Looks:
    """What was seen: the attention, the picture, and the tokens of each word of its prompt."""

    attention: Attention
    picture: Image.Image
    words: dict[str, np.ndarray]

    def table(self, step: int | None, block: int | None) -> dict[str, Any]:
        """Where each word and each cell looks at a step in a block (None: the mean over all), for the page.

        from_word (W, N), to_word (W, N) the other way round, from_cell (N, N), and cell_to_word (N, W), each row of
        bytes in base64.
        """
        maps = self.attention.maps
        chosen = maps[slice(None) if step is None else slice(step, step + 1)]
        seen = chosen[:, slice(None) if block is None else slice(block, block + 1)].mean((0, 1))
        m = self.attention.text
        from_word = np.stack([seen[tokens, m:].mean(0) for tokens in self.words.values()])
        to_word = np.stack([seen[m:, tokens].sum(-1) for tokens in self.words.values()])
        tables = {"from_word": from_word, "to_word": to_word, "from_cell": seen[m:, m:], "cell_to_word": to_word.T}
        return {"words": list(self.words), "grid": self.attention.grid} | {k: _bytes(v) for k, v in tables.items()}


def _bytes(rows: np.ndarray) -> str:
    """Rows of numbers from 0 up -> bytes, the largest of each row 255, in base64."""
    top = np.maximum(rows.max(-1, keepdims=True), 1e-12)
    return base64.b64encode(np.rint(255 * rows / top).astype(np.uint8).tobytes()).decode()


def words_of(prompt: str, tokenizers: Tokenizers, length: int) -> dict[str, np.ndarray]:
    """Every word of a prompt that the network reads, with its tokens; a word that comes twice counts as one."""
    found = {}
    for word in dict.fromkeys(re.findall(r"\w+(?:['’-]\w+)*", prompt.lower())):
        try:
            found[word] = tokenizers.word_tokens(prompt, word, length)
        except JaxpaError:  # it stands behind the last token that is read
            continue
    if not found:
        raise JaxpaError("there is no word to look from: write a prompt")
    return found


def chosen_steps(count: int, blocks: int, tokens: int, cells: int) -> list[int]:
    """As many of the steps of a schedule as fit the page's memory, the first and the last among them.

    tokens: of text and image together; cells: of the image. Raises JaxpaError for too many.
    """
    room = MAPS // (4 * blocks * tokens**2)
    if cells > MOST or not room:
        raise JaxpaError(
            f"{cells} cells are more than the page can light, {MOST}: choose a smaller height and width of the picture"
        )
    kept = min(count, room)
    if kept == 1:
        return [count // 2]
    return sorted({round(k * (count - 1) / (kept - 1)) for k in range(kept)})
