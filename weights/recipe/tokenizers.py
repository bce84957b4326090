"""The two tokenizers, trained on the world's captions: a byte-level BPE like CLIP's, a unigram model like T5's.

Every caption word is one token in each. Of other words, CLIP reads pieces, down to single bytes, and T5 one "unknown".
"""

import json
import math
import string
from collections import Counter
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPTokenizer, T5Tokenizer

from weights.recipe.compositions import WORDS, numbered
from weights.recipe.world import SIZE

CLIP_LENGTH = 77
START, END = "<|startoftext|>", "<|endoftext|>"


def clip_vocabulary(captions: list[str], merges: int = 256) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's layout: 256 bytes, 256 bytes that end a word, the merges, and the two marks of a text."""
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(vocab_size=len(bytes_) * 2 + merges, end_of_word_suffix="</w>", show_progress=False)
    model.train_from_iterator(captions, trainer)
    learned = [tuple(pair) for pair in json.loads(model.to_str())["model"]["merges"]]
    tokens = [*bytes_, *(b + "</w>" for b in bytes_), *("".join(pair) for pair in learned), START, END]
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}, learned


def make_clip(captions: list[str], folder: Path) -> None:
    vocabulary, merges = clip_vocabulary(captions)
    marks = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    CLIPTokenizer(vocabulary, merges, model_max_length=CLIP_LENGTH, **marks).save_pretrained(folder)  # type: ignore[arg-type]


def make_t5(captions: list[str], folder: Path, length: int) -> None:
    """A unigram model whose pieces are the captions' words, by their frequency, and marks of punctuation."""
    marks = ["<pad>", "</s>", "<unk>"]
    counts = Counter(word for text in captions for word in text.split())
    total = sum(counts.values())
    pieces = [(mark, 0.0) for mark in marks]
    pieces += [(f"▁{word}", math.log(count / total)) for word, count in sorted(counts.items())]
    pieces += [(mark, -20.0) for mark in string.punctuation]  # no letters: what they would spell was never learned
    pieces += [(f"▁{form}", -20.0) for word in sorted(counts) for form in capitals(word)]
    model = Tokenizer(models.Unigram(pieces, unk_id=2))
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    model.normalizer = normalizers.Sequence([normalizers.NFKC(), spaces])  # pyright: ignore[reportAttributeAccessIssue]
    words = [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]
    model.pre_tokenizer = pre_tokenizers.Sequence(words)  # pyright: ignore[reportAttributeAccessIssue]
    model.decoder = decoders.Metaspace()  # pyright: ignore[reportAttributeAccessIssue]
    model.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    model.add_special_tokens([AddedToken(mark, normalized=False) for mark in marks])
    T5Tokenizer(
        tokenizer_object=model,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_ids=0,
        model_max_length=length,
    ).save_pretrained(folder)


def capitals(word: str) -> list[str]:
    """The word's other forms, like `Red` and `RED`: T5's tokenizer, as transformers has it, does not lower a letter."""
    return list(dict.fromkeys([word.capitalize(), word.upper()]))


def capital_ids(vocabulary: dict[str, int]) -> tuple[list[int], list[int]]:
    """Ids of T5's pieces with capitals, and of the same words without them, whose embeddings they are to have."""
    known = {piece: i for piece, i in vocabulary.items() if piece != piece.lower() and piece.lower() in vocabulary}
    return list(known.values()), [vocabulary[piece.lower()] for piece in known]


def make_tokenizers(out: Path, length: int, captions: int = 20_000, seed: int = 0) -> None:
    """Write `out/tokenizer` (CLIP) and `out/tokenizer_2` (T5)."""
    known = {word for phrases in WORDS.values() for phrase in phrases for word in phrase.split()}
    texts = [numbered(seed, (SIZE, SIZE), i).caption for i in range(captions)]
    texts = [" ".join(word for word in text.split() if word in known) for text in texts]
    make_clip(texts, out / "tokenizer")
    make_t5(texts, out / "tokenizer_2", length)
