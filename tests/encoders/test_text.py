"""Tokenizers, words, and the text embedding as a value. The encoders' numbers are tested elsewhere."""

import json
import os
import shutil
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Goldens
from flax import nnx

from jaxpa.config import CLIPConfig, T5Config
from jaxpa.encoders.clip import CLIPTextEncoder
from jaxpa.encoders.t5 import T5Encoder
from jaxpa.encoders.text import SHOWN, CutPrompt, TextEmbedding, Tokenizers, encode
from jaxpa.errors import CheckpointError, JaxpaError

LONG = "a red ball and a blue box " * 20


@pytest.fixture(scope="module")
def tokenizers(goldens: Goldens) -> Tokenizers:
    return Tokenizers.load(goldens.path / "flux-dev-tiny")


def embedding(rows: int = 3, dtype: object = jnp.float32) -> TextEmbedding:
    txt = jnp.arange(rows * 4 * 5, dtype=jnp.float32).reshape(rows, 4, 5) / 7
    return TextEmbedding(txt.astype(dtype), -txt[:, 0, :2].astype(dtype))


def same(a: TextEmbedding, b: TextEmbedding) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


# --- the embedding


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_save_and_load(tmp_path: Path, dtype: object) -> None:
    value = embedding(dtype=dtype)
    value.save(tmp_path / "text.safetensors")
    same(TextEmbedding.load(tmp_path / "text.safetensors"), value)
    assert os.listdir(tmp_path) == ["text.safetensors"]


def test_save_replaces_and_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text.safetensors"
    embedding(1).save(path)
    embedding(2).save(str(path))
    assert len(TextEmbedding.load(str(path))) == 2
    assert stat.S_IMODE(path.stat().st_mode) & 0o044 == 0o044 & ~_umask()  # not private, as a temporary file is

    def broken(handle: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        embedding(3).save(path)
    assert len(TextEmbedding.load(path)) == 2
    assert os.listdir(tmp_path) == ["text.safetensors"]


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


@pytest.mark.parametrize(("shape", "dtype", "said"), [
    ((1, 2, 3), jnp.int8, "txt has the type I8"),
    ((1, 2, 3), bool, "txt has the type BOOL"),
    ((1, 2, 3), jnp.float8_e4m3fn, "txt has the type F8_E4M3"),
    ((0, 2, 3), np.float32, "none of them 0"),
    ((1, 0, 3), np.float32, "none of them 0"),
])  # fmt: skip
def test_what_no_encoder_writes(tmp_path: Path, shape: tuple[int, ...], dtype: object, said: str) -> None:
    from safetensors.flax import save_file

    path = tmp_path / "bad.safetensors"
    save_file({"txt": jnp.ones(shape, dtype), "vec": jnp.ones((shape[0], 2))}, path)
    with pytest.raises(CheckpointError, match=said):
        TextEmbedding.load(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="pipe is not a file"):
        TextEmbedding.load(tmp_path / "pipe")


def test_load_names_the_file_and_every_problem(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "bad.safetensors"
    save_file({"txt": np.zeros((1, 2, 3), np.float32), "more": np.zeros(1, np.float32)}, path)
    with pytest.raises(CheckpointError, match=r"bad\.safetensors(.|\n)*vec is missing(.|\n)*more does not belong"):
        TextEmbedding.load(path)
    save_file({"txt": np.full((1, 2, 3), np.nan, np.float32), "vec": np.zeros((2, 3), np.float32)}, path)
    with pytest.raises(CheckpointError, match=r"\(2, 3\)(.|\n)*txt is not finite"):
        TextEmbedding.load(path)
    embedding().save(path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=r"bad\.safetensors cannot be read as safetensors"):
        TextEmbedding.load(path)
    with pytest.raises(FileNotFoundError):
        TextEmbedding.load(tmp_path / "none.safetensors")


def test_rows() -> None:
    value = embedding(3)
    assert len(value) == 3
    same(value[1], TextEmbedding(value.txt[1:2], value.vec[1:2]))
    same(value[-1], value[2])
    same(value[1:], TextEmbedding(value.txt[1:], value.vec[1:]))
    same(value[[2, 0]], TextEmbedding(value.txt[np.array([2, 0])], value.vec[np.array([2, 0])]))
    same(TextEmbedding.concatenate(list(value)), value)
    with pytest.raises(IndexError):
        value[3]


def test_concatenate_refuses_what_does_not_fit() -> None:
    short = TextEmbedding(jnp.zeros((1, 3, 5)), jnp.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"\(3, 5\)"):
        TextEmbedding.concatenate([embedding(), short])
    with pytest.raises(ValueError, match="no text embeddings"):
        TextEmbedding.concatenate([])


def test_is_a_pytree() -> None:
    value = embedding()
    out = jax.jit(lambda e: jax.tree.map(lambda x: 2 * x, e)[1:])(value)
    same(out, TextEmbedding(2 * value.txt[1:], 2 * value.vec[1:]))


def test_encode_is_the_two_encoders_and_traceable() -> None:
    t5 = jax.jit(lambda: T5Encoder(T5Config(20, 8, 4, 8, 1, 3), rngs=nnx.Rngs(0)))()
    clip = jax.jit(lambda: CLIPTextEncoder(CLIPConfig(20, 12, 8, 1, 2, 7), rngs=nnx.Rngs(0)))()
    ids = np.random.default_rng(0).integers(0, 20, (2, 7)).astype(np.int32)
    value = encode(t5, clip, ids[:, :5], ids)
    assert (value.txt.shape, value.vec.shape) == ((2, 5, 8), (2, 12))
    np.testing.assert_allclose(value.txt, t5(ids[:, :5]), atol=1e-6)
    np.testing.assert_allclose(value.vec, clip(ids).pooled, atol=1e-6)
    jax.eval_shape(jax.grad(lambda m: encode(m, clip, ids[:, :5], ids).txt.sum()), t5)


# --- the tokenizers


def test_shapes_and_no_warning(tokenizers: Tokenizers) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip_ids, t5_ids, cut = tokenizers.tokenize(["", "a cat"], 9)
    assert (clip_ids.shape, t5_ids.shape, cut) == ((2, 77), (2, 9), [])
    assert clip_ids.dtype == t5_ids.dtype == np.int32
    assert [x.shape for x in tokenizers.tokenize([], 9)[:2]] == [(0, 77), (0, 9)]
    for one, several in zip(tokenizers.tokenize("a cat", 9), tokenizers.tokenize(["a cat"], 9), strict=True):
        np.testing.assert_array_equal(one, several)  # one prompt, not five letters
    with pytest.raises(TypeError, match="must be a string, not 5"):
        tokenizers.tokenize(["a cat", 5])  # type: ignore[list-item]


def test_what_is_cut_is_said_once(tokenizers: Tokenizers) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clip_ids, t5_ids, cut = tokenizers.tokenize([LONG, "a cat", LONG], 32)
    assert [(c.index, c.encoder, c.limit) for c in cut] == [
        (0, "CLIP", 77),
        (0, "T5", 32),
        (2, "CLIP", 77),
        (2, "T5", 32),
    ]
    assert len(caught) == 2
    for warning, c in zip(caught, cut, strict=False):
        assert c.encoder in str(warning.message)
        assert repr(c.text[:SHOWN])[:-1] in str(warning.message)
        assert warning.filename == __file__
    # What is kept and what is cut are the whole prompt.
    for tokenizer, ids, c in ((tokenizers.clip, clip_ids, cut[0]), (tokenizers.t5, t5_ids, cut[1])):
        kept = tokenizer.decode(ids[0], skip_special_tokens=True)
        assert "".join((kept + c.text).split()) == "".join(LONG.split())


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_the_limit_is_exact(tokenizers: Tokenizers, extra: int) -> None:
    prompt = "a red ball and a blue box"
    length = len(tokenizers.t5(prompt)["input_ids"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cut = tokenizers.tokenize([prompt], length + extra)[2]
    assert bool(cut) == (extra < 0)


def test_unreadable_tokenizers_name_their_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer"):
        Tokenizers.load(tmp_path)
    for name in ("tokenizer", "tokenizer_2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text("{")
        (tmp_path / name / "tokenizer_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        Tokenizers.load(tmp_path)


def test_a_panic_in_the_tokenizer_file_names_its_folder(goldens: Goldens, tmp_path: Path) -> None:
    shutil.copytree(goldens.path / "flux-dev-tiny" / "tokenizer", tmp_path / "tokenizer")
    (tmp_path / "tokenizer_2").mkdir()
    (tmp_path / "tokenizer_2" / "tokenizer_config.json").write_text("{}")
    charsmap = {"type": "Precompiled", "precompiled_charsmap": ""}  # the Rust part does not raise, it panics
    (tmp_path / "tokenizer_2" / "tokenizer.json").write_text(json.dumps({"version": "1.0", "normalizer": charsmap}))
    with pytest.raises(CheckpointError, match="tokenizer_2 cannot be read"):
        Tokenizers.load(tmp_path)


# --- words


def pieces(tokenizers: Tokenizers, prompt: str, word: str, max_length: int = 512) -> str:
    """The text that the found tokens stand for."""
    found = tokenizers.word_tokens(prompt, word, max_length)
    assert found.dtype == np.int32
    ids = np.asarray(tokenizers.t5(prompt)["input_ids"])[found]
    return " ".join("".join(tokenizers.t5.convert_ids_to_tokens(ids)).replace("▁", " ").split())


@pytest.mark.parametrize(
    ("prompt", "word", "expected"),
    [
        ("a teddy bear on a street", "teddy", "teddy"),
        ("a teddy bear on a street", "street", "street"),
        ("a teddy  bear on a street", "teddy bear", "teddy bear"),
        ("a cat, a concat and a cat's toy", "cat", "cat cat"),  # whole words, every occurrence
        ("a cat.", "CAT", "cat"),
        ("", "cat", None),
        ("a concat", "cat", None),
        ("a cat", " ", None),
        ("what (is) this", "(is)", "(is)"),  # not a pattern
    ],
)
def test_words(tokenizers: Tokenizers, prompt: str, word: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(JaxpaError, match="is not in '"):
            tokenizers.word_tokens(prompt, word)
        return
    if "(" in word:  # not in this small vocabulary, so only the place is checked
        expected = pieces(tokenizers, prompt, word)
        assert len(expected) > 0
        return
    assert pieces(tokenizers, prompt, word) == expected


def test_words_index_the_encoder_input(tokenizers: Tokenizers) -> None:
    prompt = "a teddy bear on a street"
    _, t5_ids, _ = tokenizers.tokenize([prompt], 64)
    found = tokenizers.word_tokens(prompt, "bear", 64)
    assert tokenizers.t5.decode(t5_ids[0, found]).strip() == "bear"


def test_a_warning_of_a_long_prompt_is_short() -> None:
    said = str(CutPrompt(0, "T5", 32, "a red ball " * 10_000))
    assert len(said) < 300
    assert "a red ball" in said


def test_words_in_the_part_that_is_cut(tokenizers: Tokenizers) -> None:
    prompt = "a cat " + "and a ball " * 10 + "with a cat and a bird"
    assert pieces(tokenizers, prompt, "cat") == "cat cat"
    assert pieces(tokenizers, prompt, "cat", 16) == "cat"
    with pytest.raises(JaxpaError, match="beyond the 16 tokens"):
        tokenizers.word_tokens(prompt, "bird", 16)


# --- without torch


def test_prompts_become_embeddings_without_torch(goldens: Goldens) -> None:
    script = f"""
import sys
sys.modules["torch"] = None  # `import torch` raises from here on
from flax import nnx
from jaxpa.encoders.clip import CLIPTextEncoder
from jaxpa.config import CLIPConfig, T5Config
from jaxpa.encoders.t5 import T5Encoder
from jaxpa.encoders.text import Tokenizers, encode
tokenizers = Tokenizers.load({str(goldens.path / "flux-dev-tiny")!r})
clip_ids, t5_ids, _ = tokenizers.tokenize(["a teddy bear"], 8)
t5 = T5Encoder(T5Config(len(tokenizers.t5), 8, 4, 8, 1, 3), rngs=nnx.Rngs(0))
clip = CLIPTextEncoder(CLIPConfig(len(tokenizers.clip), 12, 8, 1, 2, 77), rngs=nnx.Rngs(0))
value = encode(t5, clip, t5_ids, clip_ids)
print(value.txt.shape, value.vec.shape, tokenizers.word_tokens("a teddy bear", "bear").size > 0)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "(1, 8, 8) (1, 12) True"
    assert "PyTorch" not in done.stderr
