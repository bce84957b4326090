"""FLUX.1's sister models: which a checkpoint is, and what it takes where nothing is said."""

import json
import typing
from dataclasses import replace

import pytest
from small_checkpoint import CONFIG, make

from jaxpa.backbones.variants import KONTEXT_SIZES, VARIANTS, recognise
from jaxpa.checkpoint.convert import convert
from jaxpa.checkpoint.load import settings_of
from jaxpa.checkpoint.source import resolve
from jaxpa.config import Settings, TransformerConfig, VariantName
from jaxpa.errors import CheckpointError

DEV = TransformerConfig()
CONTROL, FILL = (replace(DEV, in_channels=channels, out_channels=64) for channels in (128, 384))


def test_the_table():
    assert set(VARIANTS) == set(typing.get_args(VariantName))
    for name, variant in VARIANTS.items():
        assert variant.name == name
        Settings.from_json(dict(variant.settings))
        assert sum(variant.fits(config) for config in (DEV, CONTROL, FILL)) == 1


@pytest.mark.usefixtures("torch")
def test_kontexts_sizes_are_the_references():
    from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS

    assert sorted(KONTEXT_SIZES) == sorted(PREFERRED_KONTEXT_RESOLUTIONS)
    assert len(KONTEXT_SIZES) == 17


@pytest.mark.parametrize(("config", "told", "name"), [
    (DEV, {}, "text"), (DEV, {"name": "FLUX.1-Kontext-dev"}, "kontext"),
    (DEV, {"name": "kontext", "said": "text"}, "text"),
    (DEV, {"pipeline": "FluxPipeline", "name": "tried-kontext"}, "text"), (DEV, {"name": "canny"}, "text"),
    (DEV, {"pipeline": "FluxKontextPipeline"}, "kontext"), (DEV, {"said": "kontext"}, "kontext"),
    (DEV, {"said": "fill"}, "text"), (FILL, {}, "fill"), (FILL, {"name": "kontext"}, "fill"),
    (CONTROL, {}, "control"), (CONTROL, {"pipeline": "FluxControlPipeline", "name": "FLUX.1-Depth-dev"}, "depth"),
    (CONTROL, {"name": "flux1-Canny-dev.safetensors"}, "canny"), (CONTROL, {"name": "canny", "said": "depth"}, "depth"),
])  # fmt: skip
def test_which_it_is(config, told, name):
    assert recognise(config, **told).name == name


@pytest.fixture
def folder(tmp_path):
    return make(tmp_path / "pipeline")


def test_settings_come_with_the_model(folder, tmp_path):
    """From the pipeline's class or from the user; a converted folder remembers them, its own settings come first."""
    assert settings_of(resolve(folder)) == Settings()
    assert settings_of(resolve(folder, variant="kontext")) == Settings(variant="kontext", steps=30, guidance=2.5)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "FluxKontextPipeline"}))
    assert settings_of(resolve(folder)) == Settings(variant="kontext", steps=30, guidance=2.5)
    converted = convert(folder, tmp_path / "converted")
    assert settings_of(resolve(converted)) == Settings(variant="kontext", steps=30, guidance=2.5)
    (folder / "jaxpa.json").write_text(json.dumps({"steps": 3, "variant": "text"}))
    assert settings_of(resolve(folder)) == Settings(steps=3)


def test_what_a_checkpoint_cannot_be(folder):
    (fault,) = resolve(folder, variant="fill").faults()
    assert "variant is 'fill'" in fault
    assert "16 channels" in fault
    assert "'text' or 'kontext'" in fault
    with pytest.raises(CheckpointError, match="did you mean 'kontext'"):
        resolve(folder, variant="context")  # type: ignore[arg-type]
    assert CONFIG.transformer.in_channels == 16
