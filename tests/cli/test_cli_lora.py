"""LoRAs on the command line: pictures, batches whose lines differ in them, plan and info."""

import json
import shlex

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from jaxpa.cli import command
from jaxpa.media.images import read_metadata

SIZE = ("--height", 32, "--width", 32, "--steps", 1)
LAYERS = {"transformer_blocks.1.attn.to_v": (192, 192), "single_transformer_blocks.0.proj_out": (192, 960)}


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    rng, tensors = np.random.default_rng(0), {}
    for name, (outputs, inputs) in LAYERS.items():
        tensors[f"transformer.{name}.lora_A.weight"] = rng.normal(0, inputs**-0.5, (4, inputs)).astype(np.float32)
        tensors[f"transformer.{name}.lora_B.weight"] = rng.normal(0, 8, (outputs, 4)).astype(np.float32)
    file = tmp_path_factory.mktemp("lora") / "style.safetensors"
    save_file(tensors, file)
    return file


def pixels(file):
    return np.asarray(Image.open(file), int)


def test_a_batch_changes_loras_on_one_model(run, lora, tmp_path, monkeypatch):
    """The networks load once; each line's picture is that of the command alone, which merges."""
    words = ["generate", "--prompt", "a red car", *SIZE]
    given = {"none": [], "half": ["--lora", f"{lora}:0.5"], "two": ["--lora", lora, "--lora", f"{lora}:-0.5"]}
    lines = [shlex.join(map(str, [*words, *more, "--out", tmp_path / f"{name}.png"])) for name, more in given.items()]
    (tmp_path / "jobs.txt").write_text("\n".join(lines))
    command._load_once.cache_clear()
    status, _, err = run("batch", tmp_path / "jobs.txt")
    assert status == 0, err
    assert command._load_once.cache_info().misses == 1
    status, _, err = run(*words, *given["half"], "--out", tmp_path / "alone.png")
    assert status == 0, err
    none, half, two, alone = (pixels(tmp_path / f"{name}.png") for name in ("none", "half", "two", "alone"))
    assert np.abs(half - none).max() > 10
    assert np.abs(half - alone).max() <= 1  # sums in another order
    assert np.abs(half - two).max() <= 1  # 1 - 0.5
    assert read_metadata(tmp_path / "half.png")["checkpoint"]["lora"] == [{"file": lora.name, "scale": 0.5}]
    assert run("replay", tmp_path / "half.png", "--out", tmp_path / "again.png")[0] == 2  # its LoRA is elsewhere
    status, _, err = run("replay", tmp_path / "half.png", "--inputs", lora.parent, "--out", tmp_path / "again.png")
    assert status == 0, err
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "half.png").read_bytes()


def test_a_plan_counts_what_is_kept(run, lora):
    plain, merged, kept = (
        json.loads(run("plan", "--json", *more)[1])
        for more in ([], ["--lora", lora], ["--lora", lora, "--keep-lora", "yes"])
    )
    numbers = 2 * 4 * (192 + 192 + 1) + 4 * 4 * (192 + 192 + 1) + 4 * 4 * (768 + 192 + 1)  # of all blocks alike
    assert (plain["lora_bytes"], merged["lora_bytes"], kept["lora_bytes"]) == (0, 0, 4 * numbers)
    assert kept["memory_bytes"] - plain["memory_bytes"] == kept["lora_bytes"]
    assert json.loads(run("plan", "--json", "--lora", lora, "--weights", "int8")[1])["lora_bytes"] == 4 * numbers


def test_info(run, lora, tmp_path):
    status, out, _ = run("info", lora)
    assert (status, "format diffusers, for mini" in out, "rank 4" in out) == (0, True, True)
    content = json.loads(run("info", lora, "--json")[1])
    assert content["changes"] == {
        "transformer": {"double_blocks.img.qkv.v.kernel": 1, "single_blocks.proj.kernel": 1,
                        "single_blocks.mlp_out.kernel": 1}
    }  # fmt: skip
    status, out, _ = run("info", lora, "--model", "FLUX.1-dev")
    assert (status, "[rank, 3072]" in out, "does NOT load" in out) == (1, True, True)
    save_file({"lora_unet_a.lora_down.weight": np.ones((2, 4), np.float32)}, tmp_path / "other.safetensors")
    status, out, _ = run("info", tmp_path / "other.safetensors")
    assert (status, "lora_unet_a.lora_down.weight" in out) == (1, True)
    assert "would have no effect" in run("info", "mini", "--model", "mini")[2]
    for flag, value in (("--components", "mini"), ("--variant", "fill")):
        status, out, err = run("info", lora, flag, value)
        assert (status, out, err) == (2, "", f"jaxpa: {flag} would have no effect: {lora} is a LoRA. Leave it out\n")


def test_refusals(run, lora, tmp_path):
    words = ("generate", "--prompt", "a red car", "--out", tmp_path / "a.png", "--lora")
    for value, word in ((tmp_path / "none.safetensors", "No such file"), (f"{lora}:nan", "must be a finite number")):
        status, _, err = run(*words, value)
        assert (status, word in err, "Traceback" in err) == (2, True, False), err
    assert not (tmp_path / "a.png").exists()
    assert "no effect" in run("bench", "--lora", lora)[2]
    assert "no effect" in run("bench", "--config", "dev", "--double", 1, "--lora", lora, "--keep-lora", "yes")[2]


def test_bench_times_what_is_kept(run, lora):
    words = ("bench", "--json", "--steps", 1, "--repeats", 1, "--height", 32, "--width", 32)
    content = json.loads(run(*words, "--lora", lora, "--keep-lora", "yes")[1])
    plain = json.loads(run("info", "mini", "--json")[1])["components"]["transformer"]["parameters"]
    assert content["parameters"] - plain == json.loads(run("info", lora, "--json")[1])["kept_numbers"]
