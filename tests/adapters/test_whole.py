"""Changes of whole matrices (`.diff`) beside low-rank ones: merged as NumPy adds them, and refused beside weights."""

from dataclasses import replace

import numpy as np
import pytest
from eight_bit_files import release
from safetensors.numpy import save_file
from small_checkpoint import CONFIG, same
from small_loras import Change, named

from jaxpa.adapters.lay import adapt
from jaxpa.adapters.report import format_adapter, info_adapter
from jaxpa.adapters.spec import Lora
from jaxpa.checkpoint.load import load_parts
from jaxpa.checkpoint.source import resolve
from jaxpa.errors import CheckpointError

BIG = replace(CONFIG.transformer, num_attention_heads=1, attention_head_dim=128, axes_dims_rope=(16, 56, 56))
QKV, PROJ, LAST = "double_blocks.1.img_attn.qkv", "single_blocks.0.linear2", "final_layer.adaLN_modulation.1"
SCALE = 0.5  # exact in every order of adding


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model, a file that changes it, and the model as it is then."""
    root, rng, numbers = tmp_path_factory.mktemp("whole"), np.random.default_rng(1), release("transformer", BIG)
    diffs = {key: rng.standard_normal(numbers[f"{key}.weight"].shape).astype(np.float32) for key in (QKV, PROJ, LAST)}
    tensors = {f"diffusion_model.{key}.diff": each for key, each in diffs.items()}
    tensors[f"diffusion_model.{PROJ}.diff_b"] = rng.standard_normal(BIG.width).astype(np.float32)
    changed = numbers | {f"{key}.weight": numbers[f"{key}.weight"] + SCALE * each for key, each in diffs.items()}
    changed[f"{PROJ}.bias"] = numbers[f"{PROJ}.bias"] + SCALE * tensors[f"diffusion_model.{PROJ}.diff_b"]
    for name, each in (("model", numbers), ("diff", tensors), ("changed", changed)):
        save_file(each, root / f"{name}.safetensors")
    return root


def transformer(root, loras, keep=None):
    found = adapt(resolve(root / "model.safetensors"), loras, keep)
    return load_parts(found, dtype=np.float32, parts=("transformer",)).transformer


def test_merged(files):
    want = load_parts(files / "changed.safetensors", dtype=np.float32, parts=("transformer",)).transformer
    assert same(transformer(files, [Lora(str(files / "diff.safetensors"), SCALE)]), want)


def test_beside_a_product_of_the_same_layer(files):
    rng = np.random.default_rng(2)
    down, up = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, BIG.width), (3 * BIG.width, 2)))
    save_file(named([Change(QKV, down, up)], "diffusion_model."), files / "product.safetensors")
    both = [Lora(str(files / f"{name}.safetensors"), SCALE) for name in ("product", "diff")]
    got = transformer(files, both).double_blocks.img.qkv.v.kernel.get_value()[1]
    alone = transformer(files, both[1:]).double_blocks.img.qkv.v.kernel.get_value()[1]
    np.testing.assert_allclose(got, alone + SCALE * (up @ down)[2 * BIG.width :].T, atol=1e-5)


def test_what_is_refused(files):
    lora = Lora(str(files / "diff.safetensors"))
    with pytest.raises(CheckpointError, match="changes a whole matrix, which can be merged only: --keep-lora no") as e:
        transformer(files, [lora], keep=True)
    assert len(e.value.problems) == 3
    save_file({f"diffusion_model.{QKV}.diff": np.ones((3, 4), np.float32)}, files / "wrong.safetensors")
    with pytest.raises(CheckpointError, match=r"qkv.diff' \[3, 4\] is no change of a layer of 128 inputs and 384 out"):
        transformer(files, [Lora(str(files / "wrong.safetensors"))])


def test_info(files):
    content = info_adapter(files / "diff.safetensors", str(files / "model.safetensors"))
    assert content["loads"], content
    assert (content["kept_numbers"], len(content["merged_only"])) == (0, 3)
    assert "3 matrices change as a whole" in format_adapter(content)
