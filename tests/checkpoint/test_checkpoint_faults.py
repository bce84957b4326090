"""Checkpoints that do not load: every fault is named, all of them at once; and what the hub refuses."""

import json
import shutil
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from small_checkpoint import CONFIG, FILES, SHARDS, fails, make, release, rewrite, shard

from jaxpa.checkpoint import hub
from jaxpa.checkpoint.files import finite
from jaxpa.checkpoint.load import load_component, load_parts
from jaxpa.checkpoint.report import format_info, info
from jaxpa.config import ScheduleConfig


@pytest.fixture
def folder(tmp_path):
    return make(tmp_path / "flux")


def test_all_problems_at_once(folder):
    def change(tensors):
        tensors["surplus.weight"] = tensors.pop("x_embedder.bias")
        tensors["proj_out.bias"] = np.zeros(7, np.float32)
        tensors["norm_out.linear.weight"] = tensors["norm_out.linear.weight"].astype(np.int8)

    path = folder / "transformer" / FILES["transformer"]
    rewrite(path, change)
    error = fails(
        folder / "transformer",
        "4 problems",
        "'x_embedder.bias' [16] is missing",
        f"{path}: tensor 'surplus.weight' belongs nowhere",
        f"{path}: tensor 'proj_out.bias' is [7], the configuration asks for [16]",
        "'norm_out.linear.weight' has the type I8, which is not supported",
    )
    assert len(error.problems) == 4
    (folder / "vae" / FILES["vae"]).unlink()
    shutil.rmtree(folder / "tokenizer")
    fails(folder, "6 problems", "surplus", "vae: no .safetensors file", "tokenizer is missing", load=load_parts)
    content = info(folder)
    part = content["components"]["transformer"]
    assert (part["missing"], part["extra"]) == (["x_embedder.bias"], ["surplus.weight"])
    assert len(part["misshaped"]) == len(part["problems"]) == 1
    assert not content["loads"]
    assert "does NOT load" in format_info(content)
    json.dumps(content)


def test_truncated(folder):
    path = folder / "vae" / FILES["vae"]
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    error = fails(folder / "vae", f"{path}: truncated: {len(whole) - 40:,} of {len(whole):,} bytes; incomplete: '")
    assert len(error.problems) == 1
    for size, words in ((100, "truncated: the header alone takes"), (5, "not a safetensors file"), (0, "not a saf")):
        path.write_bytes(whole[:size])
        assert len(fails(folder / "vae", str(path), words).problems) == 1
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    fails(folder / "vae", "git-lfs pointer")
    path.write_bytes((20).to_bytes(8, "little") + b"not a header at all.")
    fails(folder / "vae", "its header is damaged")


def test_missing_shard(folder):
    _, second = shard(folder)
    (folder / "transformer" / SHARDS[1]).unlink()
    error = fails(folder / "transformer", f"{SHARDS[1]}: shard missing ({len(second)} tensors, '{second[0]}' first)")
    assert len(error.problems) == 1  # its tensors are not listed one by one
    index = folder / "transformer" / f"{FILES['transformer']}.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "../../secret.safetensors"}}))
    fails(folder / "transformer", "is not a .safetensors file of this folder")
    index.write_text("[]")
    fails(folder / "transformer", f"{index}: not a JSON object")
    index.write_text('{"weight_map": {"x": 5}}')
    fails(folder / "transformer", f"{index}: not an index of shards")
    index.unlink()
    fails(folder / "transformer", "1 shards, but no .safetensors.index.json")


def test_not_finite(folder):
    def change(tensors):
        tensors["x_embedder.weight"][3, 1] = np.inf
        tensors["single_transformer_blocks.1.attn.to_k.bias"][0] = np.nan

    path = folder / "transformer" / FILES["transformer"]
    rewrite(path, change)
    error = fails(folder / "transformer", f"{path}: tensor 'x_embedder.weight' has numbers that are not finite")
    assert len(error.problems) == 2
    assert info(folder / "transformer")["loads"]  # headers do not tell


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, jnp.bfloat16])
def test_finite(dtype):
    x = np.asarray(jnp.finfo(dtype).max if dtype is not np.float64 else 1e300, dtype) * np.ones((3, 5), dtype)
    assert finite(x)
    assert finite(-x)
    for bad in (np.nan, np.inf, -np.inf):
        y = x.copy()
        y[1, 2] = bad
        assert not finite(y)
    assert finite(np.zeros(0, dtype))


def test_wrong_configurations(folder):
    path = folder / "transformer" / "config.json"
    content = json.loads(path.read_text())
    for change, words in (
        ({"axes_dims_rope": [2, 2, 2]}, "must add up to attention_head_dim"),
        ({"out_channels": 4}, "tensor 'proj_out.bias' is [16], the configuration asks for [4]"),
        ({"num_layers": "two"}, str(path)),
        ({"_class_name": "SD3Transformer2DModel"}, "SD3Transformer2DModel, not FluxTransformer2DModel"),
    ):
        path.write_text(json.dumps(content | change))
        fails(folder / "transformer", words)
        assert not info(folder)["loads"]
    path.write_text("{")
    fails(folder / "transformer", "not JSON")
    fails(folder, "not JSON", load=load_parts)
    path.unlink()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"use_karras_sigmas": True}))
    fails(folder, "config.json: No such file", "use_karras_sigmas", load=load_parts)


def test_a_schedule_that_is_missing_is_no_other_one(folder):
    """A pipeline that lists a scheduler does not take FLUX.1's in its place; one that lists none does."""
    (folder / "scheduler" / "scheduler_config.json").unlink()
    assert load_parts(folder, parts=()).config.scheduler == ScheduleConfig(
        use_dynamic_shifting=CONFIG.transformer.guidance_embeds
    )
    listed = {"_class_name": "FluxPipeline", "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}
    (folder / "model_index.json").write_text(json.dumps(listed))
    fails(folder, "scheduler_config.json is missing, which model_index.json lists", load=load_parts)
    (folder / "jaxpa.json").write_text('{"words": ["a"]}')
    fails(folder, "allowed: an object with, under each name, a list of a string", load=load_parts)


def test_pickles_are_refused(folder, tmp_path):
    (folder / "vae" / FILES["vae"]).rename(folder / "vae" / "diffusion_pytorch_model.bin")
    fails(folder / "vae", "diffusion_pytorch_model.bin is a pickle", "use .safetensors")
    (tmp_path / "flux1-dev.ckpt").touch()
    fails(tmp_path / "flux1-dev.ckpt", "is a pickle")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "flux1.pt").touch()
    fails(tmp_path / "empty", "flux1.pt is a pickle")
    (tmp_path / "empty" / "flux1.pt").unlink()
    fails(tmp_path / "empty", "no checkpoint")


def test_single_file_needs_components(folder):
    file = release("transformer", folder)
    fails(file, "heads are 8 wide", "transformer/config.json")
    fails(file, "holds the transformer only", "--components", "text_encoder_2 is missing", load=load_parts)
    fails(release("vae", folder), "have no 32 groups", "vae/config.json")
    assert load_parts(file, folder, parts=("transformer",)).transformer.config == CONFIG.transformer
    save_file({"weight": np.zeros(2, np.float32)}, folder.parent / "other.safetensors")
    fails(folder.parent / "other.safetensors", "do not have the names of a FLUX transformer")
    fails(folder.parent / "nothing", "no such file or folder")


def test_what_is_a_hub_id(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub.hub_id("black-forest-labs/FLUX.1-dev") == "black-forest-labs/FLUX.1-dev"
    assert hub.hub_id("hf://flux/dev") == "flux/dev"
    for local in (
        "flux",
        "flux/dev",
        "./flux/dev",
        "/no/where",
        "~/flux/dev",
        "a/b/c",
        "a/b.safetensors",
        "a/b.gguf",
        "mini",
    ):
        assert hub.hub_id(local) is None, local


def test_local_paths_never_go_online(folder, tmp_path, monkeypatch):
    import huggingface_hub

    def never(*args, **kwargs):
        raise AssertionError("went online")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", never)
    monkeypatch.chdir(tmp_path)
    load_component(folder / "vae")
    fails("flux/no-such-part", "no such file or folder", "hf://owner/name")


def test_hub_fetches_only_what_is_needed(folder, monkeypatch):
    import huggingface_hub

    calls = []
    monkeypatch.setattr(hub, "_answers", lambda repo: True)

    def download(repo, **kwargs):
        calls.append((repo, kwargs))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    load_parts("someone/FLUX", parts=("vae",))
    load_parts(release("transformer", folder), "someone/FLUX", parts=("transformer",))
    allowed = [set(kwargs["allow_patterns"]) for _, kwargs in calls]
    assert {"transformer/*.safetensors", "text_encoder_2/*.safetensors"} <= allowed[0]
    assert "*.safetensors" not in allowed[0]  # the same weights again, as single files
    assert "transformer/*.safetensors" not in allowed[1]
    info("someone/FLUX")
    assert calls[-1][1]["local_files_only"]


def test_hub_errors_fit_one_screen(monkeypatch):
    import huggingface_hub
    from huggingface_hub import errors

    response: Any = SimpleNamespace(headers={}, request=None)
    monkeypatch.setattr(hub, "_answers", lambda repo: True)
    for error, words in (
        (errors.HfHubHTTPError("bad gateway", response=response), "could not be fetched: bad gateway"),
        (errors.GatedRepoError("gated", response=response), "is gated"),
        (errors.RepositoryNotFoundError("none", response=response), "does not exist"),
        (errors.LocalEntryNotFoundError("no connection"), "cannot be reached"),
        (errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE"),
        (ConnectionError("broken pipe"), "could not be fetched: broken pipe"),
    ):

        def download(*args, error=error, **kwargs):
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        text = str(fails("black-forest-labs/FLUX.1-dev", words, "hf auth login", "local path", load=load_parts))
        assert "https://huggingface.co/black-forest-labs/FLUX.1-dev" in text
        assert len(text.splitlines()) < 12


def test_offline_and_not_cached(tmp_path, monkeypatch):
    """huggingface_hub itself, with its own switch: the cache is empty and nothing goes out."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    fails("black-forest-labs/FLUX.1-dev", "is not in the local cache", "hf auth login", load=load_parts)
    fails("black-forest-labs/FLUX.1-dev", "nothing is downloaded for this", load=info)
