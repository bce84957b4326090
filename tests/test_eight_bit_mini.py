"""`mini` saved as files of eight bits and fewer: how far its velocity moves, and pictures from such files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from eight_bit_files import eight_bits, of_network, packed_file, save

from jaxpa.checkpoint.load import load_parts
from jaxpa.media.images import read_metadata
from jaxpa.tokens import grid_positions
from jaxpa.transformer import FluxConditions

# Form -> how far the velocity may be off, of its own norm: kept or rounded as such a file is by default, and widened.
# Rounding to e4m3 costs 1 / 16 of a weight at most, with scales or without (then more where it is tiny); a block of 8
# bits 1 / 254 of its largest weight, of 4 bits 1 / 16; int8 on top 1 / 254 of an output's largest.
ERRORS = {"plain": (0.06, 0.06), "rows": (0.05, 0.05), "Q8_0": (0.012, 0.007), "Q4_0": (0.1, 0.1)}


@pytest.fixture(scope="module")
def mini():
    return load_parts("mini", dtype=np.float32, parts=("transformer",))


@pytest.fixture(scope="module")
def files(torch, mini, tmp_path_factory):
    root, config = tmp_path_factory.mktemp("mini"), mini.config.transformer
    numbers = of_network(mini.transformer, "transformer", config)
    paths = {form: root / f"{form}.{'gguf' if form[0] == 'Q' else 'safetensors'}" for form in ERRORS}
    for form, path in paths.items():
        if form[0] == "Q":
            packed_file(torch, numbers, form, path)
        else:
            save(torch, eight_bits(torch, numbers, form), path)
    return paths


@pytest.fixture(scope="module")
def velocity(mini):
    config = mini.config.transformer
    rng = np.random.default_rng(0)
    txt, vec, x = (
        jnp.asarray(rng.standard_normal(shape), jnp.float32)
        for shape in ((2, 32, config.joint_attention_dim), (2, config.pooled_projection_dim), (2, 36, 32))
    )
    conditions = FluxConditions(txt, vec, jnp.array([4.0, 2.0]), grid_positions(6, 6))
    ask = jax.jit(lambda velocity: velocity(x, jnp.array([0.3, 0.8])))
    return lambda model: np.asarray(ask(conditions.bind(model)))


@pytest.mark.parametrize("form", ERRORS)
def test_velocity(mini, files, velocity, form):
    want, found = velocity(mini.transformer), []
    for weights in (None, "wide"):
        parts = load_parts(files[form], "mini", np.float32, parts=("transformer",), weights=weights)
        assert parts.config.transformer == mini.config.transformer
        found.append(np.linalg.norm(velocity(parts.transformer) - want) / np.linalg.norm(want))
    assert all(0 < error < most for error, most in zip(found, ERRORS[form], strict=True)), found


def test_activations_of_eight_bits(mini, velocity):
    """Rounding the inputs of every product costs more than rounding its weights, which have a scale an output."""
    want, found = velocity(mini.transformer), {}
    for weights in ("int8", "w8a8"):
        model = load_parts("mini", dtype=np.float32, parts=("transformer",), weights=weights).transformer
        found[weights] = np.linalg.norm(velocity(model) - want) / np.linalg.norm(want)
    assert found["int8"] < found["w8a8"] < 0.05, found


def test_pictures(run, files, tmp_path):
    words = ["generate", "--prompt", "a red car", "--steps", 1, "--height", 32, "--width", 32, "--components", "mini"]
    status, _, err = run(*words, "--model", files["Q8_0"], "--out", tmp_path / "car.png")
    assert status == 0, err
    assert read_metadata(tmp_path / "car.png")["request"]["prompt"] == "a red car"
    plans = [
        json.loads(run("plan", "--json", "--model", files["rows"], "--components", "mini", *more)[1])
        for more in ([], ["--weights", "wide"])
    ]
    assert [each["weights"] for each in plans] == ["fp8", None]
    assert [each["text_weights"] for each in plans] == [None, None]
    assert plans[0]["memory_bytes"] < plans[1]["memory_bytes"]
    status, out, _ = run("info", files["Q8_0"], "--components", "mini")
    assert status == 0
    assert "rounded to int8" in out
    assert "wide" in run("plan", "--weights", "int4")[2]
