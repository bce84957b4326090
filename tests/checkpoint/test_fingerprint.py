"""Which checkpoint it is: the same wherever it lies, another one for other numbers."""

import shutil

import numpy as np
from safetensors.numpy import load_file, save_file

from jaxpa.checkpoint import source
from jaxpa.checkpoint.source import find_mini, resolve


def test_a_model_is_known_by_its_numbers(tmp_path):
    """A copy elsewhere is the same model; a fine-tune of a few layers, with the same headers, is another one."""
    shutil.copytree(find_mini(), tmp_path / "copy")
    same = resolve("mini").sha256
    assert resolve(tmp_path / "copy").sha256 == same
    (file,) = (tmp_path / "copy" / "transformer").glob("*.safetensors")
    tensors = load_file(file)
    for name in tensors:
        if "attn.to_q" in name:
            tensors[name] = (tensors[name].astype(np.float32) * 1.01).astype(tensors[name].dtype)
    before = file.read_bytes()
    save_file(tensors, file, {"format": "pt"})
    assert len(file.read_bytes()) == len(before)
    assert resolve(tmp_path / "copy").sha256 != same


def test_a_checkpoint_is_hashed_once(monkeypatch):
    """However many pictures name it, as those of a batch do."""
    hashed, own = [], source.fingerprint
    monkeypatch.setattr(source, "fingerprint", lambda *said: hashed.append(said) or own(*said))
    mini = resolve("mini")
    assert hashed == []
    assert mini.sha256 == mini.sha256 == resolve("mini").sha256
    assert len(hashed) == 2
