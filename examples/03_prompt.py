# %% [markdown]
"""
# 3. From a prompt to `txt` and `vec`

FLUX reads a prompt twice. T5's encoder makes one vector for each piece of text, `txt` (M, Dt): these become tokens that
take part in the attention. CLIP makes one vector for the whole prompt, `vec` (Dv): with the time it sets shift, scale
and gate of every block (lesson 5). T5 knows where a piece stands only by a bias on its attention, learned for every
distance, and its logits are not scaled (Raffel et al. 2020):

    x = x + linear(softmax(q k^T + bias[bucket(j - i)]) v)         q, k, v = linear(rms_norm(x))
    x = x + linear(gelu(linear(y)) * linear(y))                    y = rms_norm(x)

CLIP is a causal transformer: a piece sees only those before it, so the end of the text is the first that has read all,
and its state is `vec` (Radford et al. 2021). Padding is read like text: FLUX passes no mask.

    python examples/03_prompt.py
"""

# %%
from typing import Any

import numpy as np
from _show import block_of, maps, save, stack
from scipy.special import softmax

import jaxpa
from jaxpa.encoders.text import TextEmbedding
from jaxpa.media.figures import sheet

pipe = jaxpa.load("mini", np.float32)
PROMPT, OTHER = "a red striped mug on a beach", "a blue dotted fish in a room"
clip_ids, t5_ids, _ = pipe.tokenizers.tokenize([PROMPT, OTHER], 32)
pieces = pipe.tokenizers.t5.convert_ids_to_tokens(t5_ids[0])
read = pieces.index("</s>") + 1  # the end of the text; what follows is padding
print(" ".join(pieces[: read + 2]), "...")

# %% [markdown]
"""
## By hand

T5 in NumPy. Distances up to 7 have a bucket each, longer ones share buckets that grow with their logarithm; half of
the buckets are for pieces further left, half for those further right.
"""


# %%
def linear(layer: Any, x: np.ndarray) -> np.ndarray:
    return x @ np.asarray(layer.kernel[...])


def rms_norm(layer: Any, x: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * np.asarray(layer.scale[...])


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def bucket(offset: np.ndarray) -> np.ndarray:
    """32 buckets: 8 single distances and 8 growing ones on either side, up to 128."""
    far = 8 + np.floor(np.log(np.maximum(np.abs(offset), 1) / 8) / np.log(128 / 8) * 8).astype(int)
    return np.where(offset > 0, 16, 0) + np.where(np.abs(offset) < 8, np.abs(offset), np.minimum(far, 15))


def t5(encoder: Any, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ids (M,) -> txt (M, Dt), and the attention of the first block (H, M, M)."""
    place = np.arange(len(ids))
    bias = np.moveaxis(np.asarray(encoder.relative_bias[...])[bucket(place - place[:, None])], -1, 0)  # (H, M, M)
    x, seen = np.asarray(encoder.token_embedding[...])[ids], []
    for k in range(encoder.config.num_layers):
        block = block_of(encoder.blocks, k)
        y = rms_norm(block.attention_norm, x)
        q, k, v = (
            linear(f, y).reshape(len(ids), block.attention.heads, -1).swapaxes(0, 1)
            for f in (block.attention.q, block.attention.k, block.attention.v)
        )  # (H, M, Dh) each
        seen.append(softmax(q @ k.swapaxes(1, 2) + bias, -1))
        x = x + linear(block.attention.o, (seen[-1] @ v).swapaxes(0, 1).reshape(len(ids), -1))
        y = rms_norm(block.mlp_norm, x)
        x = x + linear(block.mlp.wo, gelu(linear(block.mlp.wi_0, y)) * linear(block.mlp.wi_1, y))
    return rms_norm(encoder.final_norm, x), seen[0]


text = pipe.encode_text([PROMPT, OTHER])  # txt (2, 32, 96), vec (2, 96)
txt, attention = t5(pipe.parts.text_encoder_2, t5_ids[0])
print(f"txt by hand and by jaxpa: {np.abs(txt - np.asarray(text.txt[0])).max():.1e} apart")
states = pipe.parts.text_encoder(clip_ids).last_hidden_state  # (2, 77, 96)
end = np.argmax(clip_ids[0] == clip_ids[0].max())  # the end of the text has the largest id
print(f"vec is state {end} of {clip_ids.shape[1]}: {np.abs(np.asarray(states[0, end] - text.vec[0])).max():.1e} apart")

# %% [markdown]
"""
## Who says what?

Give the network `txt` of one prompt and `vec` of another, with the same noise.
"""

# %%
ways = [
    (f"txt and vec: {PROMPT}", 0, 0),
    ("txt of the first, vec of the second", 0, 1),
    ("vec of the first, txt of the second", 1, 0),
    (f"txt and vec: {OTHER}", 1, 1),
]
mixed = TextEmbedding(text.txt[np.array([a for _, a, _ in ways])], text.vec[np.array([b for _, _, b in ways])])
made = pipe.generate(mixed, seed=[3] * 4)
rows = [[(name, each) for (name, _, _), each in zip(ways, made, strict=True)]]

# %%
words = [piece.replace("▁", "") for piece in pieces[:read]]
heads = [(f"head {h}", attention[h, :read, :read]) for h in range(4)]
legend = maps(
    heads, "key: what is looked at", "query: what looks", "attention, first block of T5", height=2.6, words=words
)
save(stack(sheet(rows, 220), legend), "03-prompt")

# %% [markdown]
"""
## Change something

Reverse the rows of `txt` (`TextEmbedding(text.txt[:, ::-1], text.vec)`) and generate again: the pictures stay the same,
but for rounding. To FLUX all text tokens stand at one position, so their order says nothing; what it meant is in the
tokens already, by T5. Reverse the words instead ("beach a on mug striped red a"), and T5 makes other tokens.
"""
