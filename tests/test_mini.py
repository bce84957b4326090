"""The embedded checkpoint: a folder that diffusers' own FluxPipeline loads and that gives the same there as here."""

import json
import logging
from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpa
from jaxpa.checkpoint.load import Parts, find_mini, load_parts
from jaxpa.devices.programs import Job, program
from jaxpa.devices.sharding import make_mesh
from jaxpa.encoders.text import Tokenizers, encode
from jaxpa.personalize import PRESETS
from jaxpa.routing import perturb
from jaxpa.sampling import ClassifierFree, initial_noise, sample
from jaxpa.schedule import flow_times
from jaxpa.tokens import PATCH, grid_positions, shift, unpatchify
from jaxpa.transformer import FluxConditions

FOLDER = find_mini()
SETTINGS = json.loads((FOLDER / "jaxpa.json").read_text())
PROMPT, STEPS = "a striped red cat on a beach", 4
CLASSIFIER_FREE = 1.5
# Shares of the largest value; measured 4e-7, 1.1e-5, 2e-6 and 3.4e-5. Guidance 3 triples a velocity's rounding error,
# and the last bit of a flow time turns the sinusoid of 1000 t by 6e-5: over prompts, seeds and step counts the latents
# differ by 1e-6 to 1.1e-5. The decoder triples that once more.
TEXT, LATENTS, DECODED, PICTURE = 5e-6, 5e-5, 1e-5, 1.5e-4


@pytest.fixture(scope="module")
def parts() -> Parts:
    return load_parts(FOLDER, dtype=jnp.float32)


@pytest.fixture(scope="module")
def complaints() -> list[str]:
    """What the reference's libraries say while they load the folder."""
    return []


@pytest.fixture(scope="module")
def pipeline(torch, complaints):
    from diffusers import FluxPipeline
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            complaints.append(record.getMessage())

    keep = Keep(logging.WARNING)
    loggers = [diffusers_logging.get_logger("diffusers"), transformers_logging.get_logger("transformers")]
    for logger in loggers:
        logger.addHandler(keep)
    pipe = FluxPipeline.from_pretrained(FOLDER, dtype=torch.float32, local_files_only=True, low_cpu_mem_usage=False)
    for logger in loggers:
        logger.removeHandler(keep)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def error(got, want) -> float:
    """The largest difference, in units of the largest value."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / max(1.0, np.abs(want).max()))


def test_folder():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 40 * 2**20
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt", ".model"}  # nothing to unpickle


def test_settings(parts):
    """All of them are there, and each is one that the model can do."""
    names = {"preset", "size", "steps", "guidance", "guidance_with_references", "max_length", "words"}
    assert set(SETTINGS) == names
    assert SETTINGS["preset"] in PRESETS
    assert SETTINGS["size"] % (parts.config.vae.downscale * PATCH) == 0
    assert isinstance(SETTINGS["steps"], int)
    assert SETTINGS["steps"] >= 1
    assert min(SETTINGS["guidance"], SETTINGS["guidance_with_references"]) >= 0
    assert SETTINGS["max_length"] <= Tokenizers.load(FOLDER).t5.model_max_length
    assert asdict(parts.settings) == {"variant": "text", **SETTINGS}


def test_architecture(parts):
    """FLUX in small: both kinds of blocks, at most 16 latent channels, a grid of 12 x 12 tokens or more."""
    config = parts.config
    assert config.transformer.num_layers >= 1
    assert config.transformer.num_single_layers >= 1
    assert config.transformer.guidance_embeds  # distilled, as FLUX.1-dev is
    assert config.vae.latent_channels <= 16
    assert config.transformer.in_channels == config.vae.latent_channels * PATCH**2
    assert config.transformer.joint_attention_dim == config.text_encoder_2.d_model
    assert config.transformer.pooled_projection_dim == config.text_encoder.hidden_size
    assert SETTINGS["size"] // (config.vae.downscale * PATCH) >= 12


def test_a_noun_knows_its_adjectives(parts):
    """To T5 a cat of another colour is another cat; a mug of another colour leaves it as it is."""
    tokenizers, text = Tokenizers.load(FOLDER), "a picture of a {} striped cat and a {} plain mug in a meadow"
    ids = tokenizers.t5([text.format(*two) for two in (("red", "blue"), ("green", "blue"), ("red", "green"))])[
        "input_ids"
    ]
    cat = ids[0].index(tokenizers.t5("cat")["input_ids"][0])
    rows = np.asarray(parts.text_encoder_2(jnp.asarray(ids)))[:, cat]
    own, others = np.linalg.norm(rows[1:] - rows[0], axis=-1) / np.linalg.norm(rows[0])
    assert own > 0.05  # it was 0 while attention went by content alone: of two subjects each took any colour
    assert others < own / 3


def test_the_reference_loads_it_without_complaint(pipeline, complaints):
    """No tensor missing or left over, no configuration that it doubts."""
    assert complaints == []
    assert type(pipeline).__name__ == "FluxPipeline"


def test_same_picture_as_the_reference(torch, parts, pipeline):
    """From the same prompt and noise: prompt embedding, final latents, picture.

    With both kinds of guidance at once: the embedded one, and classifier-free by a negative prompt.
    """
    scale, vae = parts.config.vae.downscale, pipeline.vae
    assert pipeline.vae_scale_factor == scale
    h, w = SETTINGS["size"] // (scale * PATCH), SETTINGS["size"] // (scale * PATCH) + 1  # not square
    x = initial_noise(jnp.array([7]), (h * w, parts.config.transformer.in_channels))
    with torch.no_grad():
        prompts = [pipeline.encode_prompt(p, p, max_sequence_length=SETTINGS["max_length"])[:2] for p in (PROMPT, "")]
        theirs = pipeline(
            PROMPT, guidance_scale=SETTINGS["guidance"], negative_prompt="", true_cfg_scale=CLASSIFIER_FREE,
            num_inference_steps=STEPS, height=h * scale * PATCH, width=w * scale * PATCH,
            max_sequence_length=SETTINGS["max_length"], latents=torch.tensor(np.asarray(x)), output_type="latent",
        ).images  # fmt: skip
        unpacked = pipeline._unpack_latents(theirs, h * scale * PATCH, w * scale * PATCH, scale)
        decoded = vae.decode(unpacked / vae.config.scaling_factor + vae.config.shift_factor).sample
        decoded = decoded.permute(0, 2, 3, 1)

    clip_ids, t5_ids, _ = Tokenizers.load(FOLDER).tokenize([PROMPT, ""], SETTINGS["max_length"])
    text = encode(parts.text_encoder_2, parts.text_encoder, t5_ids, clip_ids)
    for own, (txt, vec) in zip(text, prompts, strict=True):
        assert error(own.txt, txt) < TEXT
        assert error(own.vec, vec) < TEXT

    guidance = jnp.full(2, SETTINGS["guidance"], jnp.float32)
    velocity = FluxConditions(text.txt, text.vec, guidance, grid_positions(h, w)).bind(parts.transformer)
    times = jnp.asarray(flow_times(STEPS, h * w, parts.config.scheduler))
    ours = jax.jit(sample)(ClassifierFree(velocity, jnp.float32(CLASSIFIER_FREE)), x, times)
    assert error(ours, theirs) < LATENTS
    decode = jax.jit(lambda vae, x: vae.decode_latents(unpatchify(x, h, w)))
    assert error(decode(parts.vae, theirs.numpy()), decoded) < DECODED
    assert error(decode(parts.vae, ours), decoded) < PICTURE
    assert decoded.std() > 0.05  # of a picture


def test_nothing_is_promoted_unsaid(pictures):
    """Under what a user's code may ask of JAX, with the types that mix most; the samplings are only traced."""
    with jax.numpy_dtype_promotion("strict"):
        pipe = jaxpa.load("mini", "bfloat16", weights="w8a8")
        pipe.find_mask(pictures / "car.png", "car", steps=2, height=32, width=32)  # by text, and by an inversion
        where = jax.tree.map(lambda x: x[None, None], shift(np.ones(4, bool), 2, 2, 0, 1))
        jax.eval_shape(lambda: perturb(where, np.ones((1, 4), bool), np.arange(1), np.float32(1), (2, 2), 3, 1, True))
        drawn = Job(pipe.parts.config.transformer, (2, 2), steps=2, weights="w8a8", cache=True)
        for job in (drawn, replace(drawn, references=1, masked=4)):
            function, arguments = program(job, make_mesh(1, 1), "cpu")
            jax.eval_shape(function, *arguments)
