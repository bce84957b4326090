"""Every format of LoRA, merged and kept, against matrices that NumPy merges under the stored names."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from small_checkpoint import CONFIG, FILES, make
from small_loras import (
    bfl_ends,
    bfl_layers,
    changes,
    clip_layers,
    diffusers_layers,
    kohya,
    merged,
    named,
    save,
    t5_layers,
    xlabs,
)

from jaxpa.adapters.lay import adapt
from jaxpa.adapters.spec import Lora
from jaxpa.checkpoint.convert import convert
from jaxpa.checkpoint.keys import leaves
from jaxpa.checkpoint.load import load_parts
from jaxpa.checkpoint.source import resolve
from jaxpa.lowrank import LowRank

ALPHA, SCALE = 2.0, 0.7
PARTS = ("transformer", "text_encoder", "text_encoder_2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small pipeline in diffusers' layout."""
    return make(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def release(tmp_path_factory, folder):
    """The same transformer as a single file of the original release."""
    source = resolve(folder).parts["transformer"]
    tensors = load_file(folder / "transformer" / FILES["transformer"])
    out = {}
    both = (leaves("transformer", CONFIG.transformer, layout) for layout in ("diffusers", "bfl"))
    for theirs, bfl in zip(*both, strict=True):
        for a, b in zip(theirs.sources, bfl.sources, strict=True):
            out.setdefault(b, np.zeros(bfl.stored_shape, np.float32))
            bfl.put(theirs.take(tensors[source.tensors[a].key]), out[b])
    return save(out, tmp_path_factory.mktemp("release") / "flux.safetensors")


BLOCKS, ENDS, DIFFUSERS, CLIP, T5 = bfl_layers(), bfl_ends(), diffusers_layers(), clip_layers(), t5_layers()
RANKS = (3, 1, 5)


def formats():
    """Name -> (layout of the names, changes of the transformer, of CLIP, of T5, tensors of the file, its metadata)."""
    every, plain = changes(BLOCKS | ENDS, RANKS, ALPHA, 1), changes(BLOCKS, RANKS, None, 2)
    theirs, scaled = changes(DIFFUSERS, RANKS, None, 3), changes(DIFFUSERS, RANKS, ALPHA, 3)
    clip, t5 = changes(CLIP, (2,), ALPHA, 5), changes(T5, (2,), ALPHA, 6)
    attention, of_xlabs = xlabs()
    peft = {"transformer.r": 3, "transformer.lora_alpha": ALPHA}
    texts = kohya(clip, "lora_te1_text_model_", ALPHA) | kohya(t5, "lora_te3_", ALPHA)
    comfy = ("lora_down.weight", "lora_up.weight")
    comfy_texts = named(clip, "text_encoders.clip_l.transformer.text_model.", comfy, ALPHA)
    return {
        "diffusers": ("diffusers", theirs, [], [], named(theirs, "transformer."), None),
        "diffusers-alpha": ("diffusers", scaled, [], [], named(scaled, "transformer.", alpha=ALPHA), None),
        "diffusers-metadata": ("diffusers", scaled, [], [], named(scaled, "transformer."), peft),
        "diffusers-old": ("diffusers", theirs, [], [],
                          named(theirs, "transformer.", ("lora.down.weight", "lora.up.weight")), None),
        "peft": ("diffusers", theirs, [], [], named(theirs, "base_model.model."), None),
        "kohya": ("bfl", every, clip, t5, kohya(every, "lora_unet_", ALPHA) | texts, None),
        "kohya-no-alpha": ("bfl", plain, [], [], kohya(plain, "lora_unet_"), None),
        "mixture": ("diffusers", scaled, clip, [],
                    kohya(scaled, "lora_transformer_", ALPHA) | kohya(clip, "lora_te1_text_model_", ALPHA), None),
        "comfy": ("bfl", every, clip, [],
                  named(every, "diffusion_model.", comfy, ALPHA) | comfy_texts, None),
        "ai-toolkit": ("bfl", plain, [], [], named(plain, "diffusion_model."), None),
        "fal": ("bfl", plain, [], [], named(plain, "base_model.model."), None),
        "xlabs": ("bfl", attention, [], [], of_xlabs, None),
    }  # fmt: skip


FORMATS = formats()


def load(source, file, keep, *loras, components=None):
    """A checkpoint's networks with a LoRA of SCALE, and others."""
    found = adapt(resolve(source, components), [Lora(str(file), SCALE), *loras], keep)
    return load_parts(found, dtype=np.float32, parts=PARTS)


def dense(network):
    """The network with every kept change multiplied out."""

    def whole(x):
        if not isinstance(x, LowRank):
            return np.asarray(x)
        base, down, up, strength = map(np.asarray, (x.base, x.down, x.up, x.strength))
        return base + (down * strength[..., None, :]) @ up

    return jax.tree.map(whole, network, is_leaf=lambda x: isinstance(x, LowRank))


def same(got, want):
    """Equal to float32's rounding of values of order 1; products of up to five ranks are added to them."""
    pairs = zip(jax.tree.leaves(dense(got)), jax.tree.leaves(want), strict=True)
    assert all(np.allclose(a, b, rtol=0, atol=3e-6) for a, b in pairs)


@pytest.fixture(scope="module")
def truth(folder, release, tmp_path_factory):
    """The networks that a format's changes make, loaded from files that NumPy has merged."""

    def make(name):
        layout, of_transformer, of_clip, of_t5, *_ = FORMATS[name]
        root, source = tmp_path_factory.mktemp(name) / "merged", None
        shutil.copytree(folder, root)
        for part, own in (("transformer", of_transformer), ("text_encoder", of_clip), ("text_encoder_2", of_t5)):
            file = root / part / FILES[part]
            if part == "transformer" and layout == "bfl":
                source = save(merged(load_file(release), own, SCALE), root / "flux.safetensors")
            else:
                save(merged(load_file(file), own, SCALE), file)
        return load_parts(source or root, root if source else None, np.float32, parts=PARTS)

    return make


def file_of(name, tmp_path):
    *_, tensors, peft = FORMATS[name]
    metadata = None if peft is None else {"lora_adapter_metadata": json.dumps(peft)}
    return save(tensors, tmp_path / f"{name}.safetensors", metadata)


@pytest.mark.parametrize("name", FORMATS)
def test_a_format(name, folder, release, truth, tmp_path):
    file, want = file_of(name, tmp_path), truth(name)
    for source, components, keep in ((folder, None, False), (folder, None, True), (release, folder, False)):
        parts = load(source, file, keep, components=components)
        for part in PARTS:
            same(getattr(parts, part), getattr(want, part))
        kept = [isinstance(x, LowRank) for x in
                jax.tree.leaves(parts.transformer, is_leaf=lambda x: isinstance(x, LowRank))]  # fmt: skip
        assert any(kept) == keep


def test_converted_folders_take_them(folder, truth, tmp_path):
    converted, file = convert(folder, tmp_path / "converted"), file_of("kohya", tmp_path)
    want = truth("kohya")
    for keep in (False, True):
        parts = load(converted, file, keep)
        for part in PARTS:
            same(getattr(parts, part), getattr(want, part))
