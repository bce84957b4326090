"""The golden set that the repository carries: small as stored, and whole, byte for byte, as the tests see it."""

import json
import shutil
from pathlib import Path

import pytest
from golden_compact import compact, raw_digests
from golden_set import BOOK, PACKED, materialise, pack_file, unpack_file

STORED = Path(__file__).parents[1] / "goldens"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return materialise(STORED, tmp_path_factory.mktemp("whole"))


def listing(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_stored_size():
    assert sum(path.stat().st_size for path in STORED.rglob("*") if path.is_file()) < 14e6


def test_written_tensors_are_the_measured_ones(whole):
    """Read back from the files, with a reader that converts nothing."""
    book = json.loads((STORED / BOOK).read_text())["sha256"]
    assert book
    for name, digests in book.items():
        written = raw_digests(whole / name)
        assert {key: written[key] for key in digests} == digests, name
        if name.startswith(("bfl/", "flux-")):
            assert set(written) == set(digests), name


def test_layout(whole):
    """Both model folders have the same parts; each index names files that are there; nothing stays packed."""
    names = listing(whole)
    assert BOOK not in names
    assert not [name for name in names if name.endswith(PACKED)]
    parts = [
        {name.split("/")[1] for name in names if name.startswith(f"flux-{kind}-tiny/")} for kind in ("dev", "schnell")
    ]
    assert parts[0] == parts[1] >= {"transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"}
    for index in (name for name in names if name.endswith(".index.json")):
        shards = json.loads((whole / index).read_text())["weight_map"].values()
        assert {f"{index.rpartition('/')[0]}/{shard}" for shard in shards} <= names


def test_compact_of_the_whole_is_the_stored_set(whole, tmp_path):
    compact(whole, tmp_path)
    assert listing(tmp_path) == listing(STORED) - {"README.md"}
    for name in listing(tmp_path):
        # Deflated bytes depend on the library's version, what they stand for does not.
        read = unpack_file if name.endswith(PACKED) else bytes
        assert read((tmp_path / name).read_bytes()) == read((STORED / name).read_bytes()), name


@pytest.mark.parametrize(
    ("name", "derived"),
    [
        ("flux-dev-tiny/text_encoder/model.safetensors", "flux-schnell-tiny/text_encoder"),
        ("flux-dev-tiny/vae/diffusion_pytorch_model.safetensors", "bfl/ae-tiny"),
        ("pa_inversion.safetensors", "pa_inversion"),
    ],
)
def test_another_byte_is_found(tmp_path, name, derived):
    shutil.copytree(STORED, tmp_path / "stored")
    path = tmp_path / "stored" / (name + PACKED)
    raw = bytearray(unpack_file(path.read_bytes()))
    # A bit of the last float's mantissa that bfloat16 keeps.
    raw[-2] ^= 0x40
    path.write_bytes(pack_file(bytes(raw)))
    with pytest.raises(ValueError, match=derived):
        materialise(tmp_path / "stored", tmp_path / "whole")


@pytest.mark.parametrize("size", [0, 3, 4, 23])
def test_packing_is_lossless(size):
    raw = (2).to_bytes(8, "little") + b"{}" + bytes(range(size))
    assert unpack_file(pack_file(raw)) == raw
