"""The paper's metrics on small random networks: against transformers and torchmetrics by hand, and their properties."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import transformers
from huggingface_hub import constants
from PIL import Image
from safetensors.numpy import load_file, save_file
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

import jaxpa
from jaxpa.errors import JaxpaError
from jaxpa.evaluation import metrics, scores
from jaxpa.evaluation.evaluate import ANOTHER, CEILING, FLOOR, Case, Target, evaluate, measure, moved
from jaxpa.media.images import to_image
from jaxpa.pipeline import Pipeline

SIDE = 32  # of what the networks see
PROMPT = "a car on a beach"
SMALL: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SEEN: dict[str, Any] = {"image_size": SIDE, "patch_size": 8}
# Batches of another size are summed in another order; the cosines are of float32.
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 2e-6}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def folders(torch, tmp_path_factory) -> dict[str, Path]:
    """A CLIP of mini's words and two vision transformers, random, as save_pretrained writes them."""
    root = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    weights = Path(jaxpa.__file__).parent.parent / "weights" / "mini"
    tokenizer = transformers.AutoTokenizer.from_pretrained(weights / "tokenizer", local_files_only=True)
    text = {**SMALL, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    config = transformers.CLIPConfig(text_config=text, vision_config={**SMALL, **SEEN}, projection_dim=12)
    square = {"height": SIDE, "width": SIDE}
    vision = transformers.ViTConfig(**SMALL, **SEEN)
    cut = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square)
    made = {
        "clip": (transformers.CLIPModel(config), cut, tokenizer),
        "dino": (transformers.ViTModel(vision, add_pooling_layer=False), ViTImageProcessorPil(size=square)),
        "dinov2": (transformers.Dinov2Model(transformers.Dinov2Config(**SMALL, **SEEN)), cut),
    }
    for name, parts in made.items():
        with torch.no_grad():  # as they are made, class tokens hardly depend on the picture
            for weight in parts[0].parameters():
                weight += 0.2 * torch.randn_like(weight)
        for part in parts:
            part.save_pretrained(root / name)
    return {name: root / name for name in made}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def noise(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Pictures of whole 8-bit values, as all pictures are, with colours of their own."""
    values = rng.integers(0, 256, shape) * rng.uniform(0.2, 1, (*shape[:-3], 1, 1, 3))
    return (np.rint(values) / 127.5 - 1).astype(np.float32)


@pytest.fixture(scope="module")
def batch():
    """(5, H, W, 3) pictures, a reference (H, W, 3) and its mask (H, W), not square."""
    rng = np.random.default_rng(1)
    mask = np.zeros((40, 56), bool)
    mask[8:30, 20:44] = True
    return noise(rng, 5, 40, 56, 3), noise(rng, 40, 56, 3), mask


def prepared(name: str, array: np.ndarray) -> Any:
    """A picture (H, W, 3) as the networks read it, (1, 3, h, w), by Pillow."""
    import torch

    image = Image.fromarray(np.uint8(np.rint((array + 1) * 127.5)))
    mean, std = np.array(OPENAI_CLIP_MEAN), np.array(OPENAI_CLIP_STD)
    if name == "dino":
        image, mean, std = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.full(3, 0.5), np.full(3, 0.5)
    else:  # the shorter side scaled, then the middle
        scale = SIDE / min(image.size)
        image = image.resize((int(scale * image.width), int(scale * image.height)), Image.Resampling.BICUBIC)
        left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
        image = image.crop((left, top, left + SIDE, top + SIDE))
    return torch.tensor((np.asarray(image) / 255 - mean) / std, dtype=torch.float32).permute(2, 0, 1)[None]


def by_hand(folder: Path, arrays: np.ndarray) -> np.ndarray:
    """Embeddings by transformers' networks, a picture at a time."""
    import torch

    model = transformers.AutoModel.from_pretrained(folder).eval()
    rows = []
    for array in arrays:
        x = prepared(folder.name, array)
        with torch.no_grad():
            if folder.name == "clip":
                rows.append(model.visual_projection(model.vision_model(x).pooler_output)[0].numpy())
            else:
                rows.append(model(x).last_hidden_state[0, 0].numpy())
    return np.stack(rows)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)))


# Against transformers ----------------------------------------------------------------------------------------


def test_clip(torch, folders, batch):
    pictures, reference, mask = batch
    got = metrics.clip(folders["clip"], batch=2)(pictures, reference, mask, PROMPT)
    assert list(got) == ["clip_t", "clip_i", "seg_clip_i"]
    alone = reference.copy()
    alone[~mask] = 1  # white
    *made, whole, cut = by_hand(folders["clip"], np.stack([*pictures, reference, alone]))
    model = transformers.CLIPModel.from_pretrained(folders["clip"]).eval()
    ids = transformers.AutoTokenizer.from_pretrained(folders["clip"])(PROMPT)["input_ids"]
    with torch.no_grad():
        text = model.text_projection(model.text_model(torch.tensor([ids])).pooler_output)[0].numpy()
    np.testing.assert_allclose(got["clip_t"], [cosine(one, text) for one in made], **CLOSE)
    np.testing.assert_allclose(got["clip_i"], [cosine(one, whole) for one in made], **CLOSE)
    np.testing.assert_allclose(got["seg_clip_i"], [cosine(one, cut) for one in made], **CLOSE)
    assert np.ptp(got["clip_t"]) > 1e-3 < np.ptp(got["clip_i"])  # these networks do see the pictures
    assert np.abs(got["clip_i"] - got["seg_clip_i"]).min() > 1e-4


@pytest.mark.parametrize("name", ["dino", "dinov2"])
def test_dino(folders, batch, name):
    pictures, reference, mask = batch
    got = metrics.dino(folders[name])(pictures, reference, mask, PROMPT)
    *made, whole = by_hand(folders[name], np.stack([*pictures, reference]))
    assert list(got) == ["dino"]
    np.testing.assert_allclose(got["dino"], [cosine(one, whole) for one in made], **CLOSE)
    assert np.ptp(got["dino"]) > 1e-3


# Properties --------------------------------------------------------------------------------------------------


def test_a_picture_and_itself(folders, batch):
    _, reference, mask = batch
    alone = np.where(mask[..., None], reference, np.float32(1))
    clip, dino = metrics.clip(folders["clip"]), metrics.dino(folders["dino"])
    got = {**clip(reference[None], reference, mask, None), **dino(reference[None], reference, mask, None)}
    assert "clip_t" not in got  # there is no prompt
    assert [got[name][0] for name in ("clip_i", "dino")] == pytest.approx([1, 1], abs=2e-6)
    assert clip(alone[None], reference, mask, None)["seg_clip_i"][0] == pytest.approx(1, abs=2e-6)


def test_order_and_batches(folders, batch):
    pictures, reference, mask = batch
    order = np.array([3, 0, 4, 2, 1])
    for make, folder in ((metrics.clip, folders["clip"]), (metrics.dino, folders["dino"])):
        want = make(folder, batch=64)(pictures, reference, mask, PROMPT)
        for size in (1, 3):
            got = make(folder, batch=size)(pictures[order], reference, mask, PROMPT)
            for name, values in want.items():
                np.testing.assert_allclose(got[name], values[order], **CLOSE)


def test_the_mask(folders, batch):
    """It matters to SegCLIP-I alone, and there what lies outside does not."""
    pictures, reference, mask = batch
    clip = metrics.clip(folders["clip"])
    here, there = clip(pictures, reference, mask, PROMPT), clip(pictures, reference, mask[:, ::-1], PROMPT)
    for name in ("clip_t", "clip_i"):
        np.testing.assert_array_equal(here[name], there[name])
    assert np.abs(here["seg_clip_i"] - there["seg_clip_i"]).max() > 1e-4
    outside = np.where(mask[..., None], reference, -reference)
    np.testing.assert_array_equal(clip(pictures, outside, mask, None)["seg_clip_i"], here["seg_clip_i"])
    grey = metrics.clip(folders["clip"], fill=0.0)(pictures, reference, mask, None)
    assert np.abs(grey["seg_clip_i"] - here["seg_clip_i"]).max() > 1e-4
    everything = clip(pictures, reference, np.ones_like(mask), None)
    np.testing.assert_allclose(everything["seg_clip_i"], everything["clip_i"], **CLOSE)


def test_several_subjects(folders, batch, rng):
    pictures, reference, mask = batch
    other = noise(rng, *reference.shape)
    masks = np.stack([mask, mask[::-1]])
    for metric in (metrics.clip(folders["clip"]), metrics.dino(folders["dino"])):
        got = metric(pictures, np.stack([reference, other]), masks, PROMPT)
        each = [metric(pictures, *one, PROMPT) for one in zip((reference, other), masks, strict=True)]
        for name, values in got.items():
            np.testing.assert_allclose(values, np.mean([one[name] for one in each], 0), **CLOSE)
    # Two subjects of one picture.
    clip = metrics.clip(folders["clip"])
    both = clip(pictures, reference, masks, None)["seg_clip_i"]
    each = [clip(pictures, reference, one, None)["seg_clip_i"] for one in masks]
    np.testing.assert_allclose(both, np.mean(each, 0), **CLOSE)


def test_a_long_prompt_is_cut(folders, batch):
    pictures, reference, mask = batch
    clip = metrics.clip(folders["clip"])
    long = clip(pictures, reference, mask, " ".join([PROMPT] * 40))["clip_t"]
    longer = clip(pictures, reference, mask, " ".join([PROMPT] * 50))["clip_t"]
    np.testing.assert_array_equal(long, longer)


# DreamSim and FID --------------------------------------------------------------------------------------------


def test_dreamsim(torch, batch, monkeypatch, tmp_path):
    """The plumbing, with a distance of mean colours in place of the network."""
    pictures, reference, mask = batch
    asked = {}

    def load(**options):
        asked.update(options)
        return (lambda a, b: (a - b).mean((1, 2, 3)).abs()), process

    def process(image):
        return torch.tensor(np.asarray(image.resize((8, 8)), np.float32) / 255).movedim(-1, 0)[None]

    monkeypatch.setitem(sys.modules, "dreamsim", SimpleNamespace(dreamsim=load))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    metric = metrics.dreamsim(batch=2)
    got = metric(np.stack([*pictures, reference]), reference, mask, PROMPT)["dreamsim"]
    assert (asked["dreamsim_type"], asked["cache_dir"]) == ("ensemble", str(tmp_path / "dreamsim"))
    assert got.shape == (6,)
    assert got[-1] == 0
    assert got[:-1].min() > 0
    two = metric(pictures, np.stack([reference, pictures[0]]), mask, PROMPT)["dreamsim"]
    swapped = metric(pictures[:1], reference, mask, PROMPT)["dreamsim"]
    assert two[0] == pytest.approx(swapped[0] / 2)

    def fail(**options):
        raise KeyError(options["dreamsim_type"])

    monkeypatch.setitem(sys.modules, "dreamsim", SimpleNamespace(dreamsim=fail))
    with pytest.raises(JaxpaError, match="no network 'mind'"):
        metrics.dreamsim("mind")


@pytest.fixture
def mean_colours(torch):
    class MeanColours(torch.nn.Module):
        """(B, 3, H, W) uint8 -> (B, 3)."""

        num_features = 3

        def forward(self, x):
            assert x.dtype == torch.uint8
            return x.float().mean((2, 3))

    return MeanColours()


def test_fid(mean_colours, rng, tmp_path, monkeypatch):
    """Against the closed form, with the mean colour in place of Inception's features."""
    from torchmetrics.image import fid as library

    pictures: dict[str, list[np.ndarray]] = {
        name: [np.rint((x + 1) * 127.5).astype(np.uint8) for x in noise(rng, count, 9, 12 + count, 3)]
        for name, count in (("real", 6), ("a", 5), ("b", 7))
    }
    for k, x in enumerate(pictures["real"]):
        Image.fromarray(x).save(tmp_path / f"{k}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    features = {name: np.stack([x.mean((0, 1)) for x in each]) for name, each in pictures.items()}
    made = {"a": pictures["a"], "b": [Image.fromarray(x) for x in pictures["b"]], "the same": pictures["real"]}
    distances = metrics.fid(tmp_path, feature=mean_colours)
    got = distances(made)
    assert list(got) == ["a", "b", "the same"]
    cov = np.cov(features["real"].T)
    for name in ("a", "b"):
        other = np.cov(features[name].T)
        apart = features["real"].mean(0) - features[name].mean(0)
        want = apart @ apart + np.trace(cov + other - 2 * np.real(scipy.linalg.sqrtm(cov @ other)))
        assert got[name] == pytest.approx(want, rel=1e-4)  # the features are of float32
    assert abs(got["the same"]) < 1e-3 * np.trace(cov)
    with pytest.raises(JaxpaError, match="b holds 1 pictures"):
        distances({"a": pictures["a"], "b": pictures["b"][:1]})
    assert distances({"b": pictures["b"]})["b"] == got["b"]  # nothing is left of others
    with pytest.raises(JaxpaError, match="nowhere holds 0 pictures"):
        metrics.fid(tmp_path / "nowhere", feature=mean_colours)
    monkeypatch.setattr(library, "_TORCH_FIDELITY_AVAILABLE", False)  # the package that Inception comes with
    with pytest.raises(JaxpaError, match=r"needs torchmetrics\[image\] .*pip install 'jaxpa\[eval\]'"):
        metrics.fid(tmp_path)


# What can be wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("missing", "call"), [
    *[("torch", call) for call in (metrics.clip, metrics.dino, metrics.dreamsim, lambda: metrics.fid("."))],
    ("dreamsim", metrics.dreamsim), ("torchmetrics", lambda: metrics.fid(".")),
])  # fmt: skip
def test_packages_that_are_missing(request, monkeypatch, missing, call):
    if missing != "torch":
        request.getfixturevalue("torch")  # which is asked for first
    for name in [name for name in sys.modules if name.split(".")[0] == missing]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(JaxpaError, match=rf"needs {missing} .*pip install 'jaxpa\[eval\]'") as error:
        call()
    assert "\n" not in str(error.value)


def test_networks_that_do_not_load(folders, tmp_path):
    for make in (metrics.clip, metrics.dino):
        for source in (tmp_path / "nowhere", "nobody/nothing"):  # the hub is not asked
            with pytest.raises(JaxpaError, match=f"{source} cannot be read") as error:
                make(source)
            assert "\n" not in str(error.value)
    with pytest.raises(JaxpaError, match="not a CLIP but a ViTModel"):
        metrics.clip(folders["dino"])
    with pytest.raises(JaxpaError, match="not a vision transformer but a CLIPModel"):
        metrics.dino(folders["clip"])


def test_weights_that_do_not_load(torch, folders, tmp_path):
    cut = tmp_path / "cut"
    shutil.copytree(folders["clip"], cut)
    weights = load_file(cut / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, cut / "model.safetensors", {"format": "pt"})
    # transformers would make it at random.
    with pytest.raises(JaxpaError, match=r"lacks 1 weights of a CLIPModel, text_projection\.weight"):
        metrics.clip(cut)
    pickled = tmp_path / "pickled"
    shutil.copytree(folders["dino"], pickled)
    (pickled / "model.safetensors").unlink()
    torch.save(transformers.AutoModel.from_pretrained(folders["dino"]).state_dict(), pickled / "pytorch_model.bin")
    with pytest.raises(JaxpaError, match="in safetensors"):
        metrics.dino(pickled)


# In an evaluation --------------------------------------------------------------------------------------------


def test_measure(batch):
    """The reference is the user's own picture with its own mask, where a target has them."""
    pictures, reference, mask = batch
    moved, cells = np.roll(reference, 3, 1), np.ones_like(mask)
    seen = []

    def metric(*given):
        seen.append(given)
        return {"first": np.arange(len(given[0]))}

    got = measure(pictures, Target(moved, mask[:, ::-1], cells, reference, mask), PROMPT, metrics=[metric])
    assert [values["first"] for values in got] == [0, 1, 2, 3, 4]
    measure(pictures, Target(moved, mask[:, ::-1], cells), None, metrics=[metric])
    for given, want in zip(seen, ((reference, mask, PROMPT), (moved, mask[:, ::-1], None)), strict=True):
        np.testing.assert_array_equal(given[1], want[0])
        np.testing.assert_array_equal(given[2], want[1])
        assert given[3] == want[2]
    with pytest.raises(ValueError, match="zip"):
        measure(pictures, Target(moved, mask, cells), None, metrics=[lambda *_: {"short": np.zeros(2)}])


def test_evaluation(folders, pictures, rng, monkeypatch):
    """Columns of the table; noise stands for what would be sampled, which is not what is tested here."""

    def sample(self, request, *_, **__):
        return [to_image(x) for x in noise(rng, len(request.sampling.seeds()), 96, 96, 3)]

    monkeypatch.setattr(Pipeline, "make", sample)
    subject = jaxpa.Subject(pictures / "car.png", pictures / "car-mask.png", at=(0.6, 0.5))
    case = Case("car", subject, (PROMPT,), another=pictures / "cat.png")
    looking = [metrics.METRICS[name](folders[name]) for name in ("clip", "dino")]
    pipe = jaxpa.load("mini")
    got = evaluate(pipe, [case], {"early": {"tau": 0.9}}, (3, 5), metrics=looking)
    table = scores.summarise(got)
    assert {label: row["dino"].n for label, row in table.items()} == {CEILING: 1, ANOTHER: 1, FLOOR: 2, "early": 2}
    assert {label: row["clip_t"].n for label, row in table.items()} == {CEILING: 0, ANOTHER: 0, FLOOR: 2, "early": 2}
    # What the autoencoder leaves of the reference is nearer to it than anything else.
    for name in ("clip_i", "dino"):
        assert max(table, key=lambda label: table[label][name].mean) == CEILING
    # The mask is the reference's own, of the user's picture on the canvas.
    target = moved(pipe.references([subject]), subject)
    assert target.mask is not None
    assert target.reference is not None
    alone = np.where(target.mask[..., None], target.reference, np.float32(1))
    assert looking[0](alone[None], target.reference, target.mask, None)["seg_clip_i"][0] == pytest.approx(1, abs=2e-6)
