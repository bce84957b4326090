"""FLUX.1's sister models against diffusers' own pipelines, from the prompt, the pictures and the noise to the latents.

Small random networks in mini's folder; the settings are those that come with the model.
"""

import dataclasses
import json
import shutil
import sys
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from sister_reference import CHANNELS, SIZES, TOKEN, error, load_reference, make_sister

import jaxpa
from jaxpa.checkpoint import redux as redux_files
from jaxpa.checkpoint.redux import find_redux, load_redux
from jaxpa.checkpoint.source import locate, resolve
from jaxpa.config import FluxConfig, Settings, TransformerConfig
from jaxpa.devices.cost import transformer_flops
from jaxpa.devices.plan import format_plan, plan
from jaxpa.devices.programs import Job, program
from jaxpa.devices.sharding import make_mesh
from jaxpa.devices.timing import Clock
from jaxpa.errors import CheckpointError, JaxpaError
from jaxpa.model import Beside
from jaxpa.request.request import Request
from jaxpa.request.spec import Spec
from jaxpa.sampling import Accompanied
from jaxpa.transformer import FluxConditions

PROMPT, STEPS, SIZE = "a striped red cat on a beach", 4, (80, 96)  # height, width
# Shares of the largest value. Guidance g is embedded by the sinusoids of 1000 g, in whose largest the two libraries'
# frequencies, apart by their last bit, make an angle of g * 6e-5.
LATENTS, AT_30 = 2e-5, 2e-4


@pytest.fixture(scope="module")
def folders(torch, tmp_path_factory):
    """A folder for each kind, made once when it is asked for."""
    root, made = tmp_path_factory.mktemp("sisters"), {}

    def folder(reads: str):
        if reads not in made:
            made[reads] = make_sister(root / reads, reads)
        return made[reads]

    return folder


@pytest.fixture(scope="module")
def pipes(folders):
    """A pipeline for each kind, loaded once."""
    loaded: dict[str, jaxpa.Pipeline] = {}

    def pipe(reads: str) -> jaxpa.Pipeline:
        if reads not in loaded:
            loaded[reads] = jaxpa.load(folders(reads))
        return loaded[reads]

    return pipe


@pytest.fixture
def theirs(folders, pipes, torch, monkeypatch):
    """Latents by diffusers' pipeline of a kind, from our noise of a seed."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    references = cache(lambda reads: load_reference(folders(reads), reads))

    # Some of its pipelines draw the autoencoder's posterior; the mode is what both sides can agree on.
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())

    def sample(reads: str, seed: int, size=SIZE, **words: Any) -> np.ndarray:
        pipe = pipes(reads)
        noise = pipe.noise(np.array([seed]), pipe.grid(*size))
        with torch.no_grad():
            return references(reads)(
                prompt=PROMPT, num_inference_steps=STEPS, height=size[0], width=size[1], max_sequence_length=32,
                latents=torch.tensor(np.array(noise)), output_type="latent",
                **{"guidance_scale": pipe.settings.guidance, **words},
            ).images.numpy()  # fmt: skip

    return sample


def picture(seed: int, size=SIZE) -> Image.Image:
    """Blurred noise, which an autoencoder can take for a picture."""
    small = np.random.default_rng(seed).integers(0, 256, (size[0] // 8, size[1] // 8, 3), np.uint8)
    return Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC)


def hole(top: int = 20) -> Image.Image:
    """Some pixels off the token grid."""
    mask = np.zeros(SIZE, np.uint8)
    mask[top:61, 30:70] = 255
    return Image.fromarray(mask)


def ours(pipe: jaxpa.Pipeline, request: Request) -> np.ndarray:
    request.check(pipe.spec)
    pictures: Any = pipe.prepare(request)
    return np.concatenate(list(pipe.sample_generated(request, pictures)))


# Fill ---------------------------------------------------------------------------------------------------------


def test_fill_equals_the_references(pipes, theirs):
    pipe = pipes("fill")
    assert (pipe.settings.variant, pipe.settings.guidance, pipe.settings.steps) == ("fill", 30.0, 50)
    words = {"image": picture(1), "mask": hole(), "steps": STEPS, "seed": 3, "height": SIZE[0], "width": SIZE[1]}
    want = theirs("fill", 3, image=picture(1), mask_image=hole())
    assert error(ours(pipe, Request.of(PROMPT, **words)), want) < AT_30
    low = theirs("fill", 3, image=picture(1), mask_image=hole(), guidance_scale=1.0)
    assert error(ours(pipe, Request.of(PROMPT, guidance=1.0, **words)), low) < LATENTS
    assert error(low, want) > 1e-2


def test_fill_keeps_its_pixels_and_compiles_once(pipes):
    """Another picture, mask, prompt and seed of the same sizes run the same programs."""
    pipe, words = pipes("fill"), {"steps": STEPS, "height": SIZE[0], "width": SIZE[1], "feather": 0}
    (first,) = pipe.inpaint(picture(1), hole(), PROMPT, **words)
    with Clock() as clock:
        (image,) = pipe.inpaint(picture(2), hole(35), "a blue mug in a room", seed=5, **words)
    assert clock.programs == 0
    inside = np.asarray(hole(35)) > 0
    np.testing.assert_array_equal(np.asarray(image)[~inside], np.asarray(picture(2))[~inside])
    assert np.abs(np.asarray(image, float) - np.asarray(picture(2), float))[inside].mean() > 5
    assert image.size == first.size == (96, 80)
    (wider,) = pipe.outpaint(picture(1), PROMPT, pad=(0, 16, 0, 0), steps=STEPS, feather=0)
    np.testing.assert_array_equal(np.asarray(wider)[:, :96], np.asarray(picture(1)))


def test_what_fill_refuses(pipes):
    pipe, kept = pipes("fill"), {"image": picture(1), "mask": hole()}
    for words, said in (
        ({}, "generate has nothing to fill.*inpaint or outpaint"),
        ({"subjects": [jaxpa.Subject(picture(1), hole())]}, "personalize has nothing to fill"),
        ({**kept, "tau": 0.5}, "tau would have no effect"), ({**kept, "caption": "a mug"}, "caption would have no"),
        ({"control": picture(1), **kept}, "a control picture would have no effect"),
    ):  # fmt: skip
        with pytest.raises(JaxpaError, match=said):
            pipe.make(Request.of(PROMPT, **words))
    for call in (
        lambda: pipe.find_mask(picture(1), "cat"), lambda: pipe.reconstruct(picture(1)),
        lambda: pipe.attention("a cat"), lambda: pipe.velocity(pipe.encode_text(PROMPT)),
    ):  # fmt: skip
        with pytest.raises(JaxpaError, match=r"FLUX\.1-Fill draws nothing from text alone"):
            call()


# Kontext ------------------------------------------------------------------------------------------------------


def test_kontext_equals_the_references(pipes, theirs):
    """The picture is read at its own size, whatever the canvas."""
    pipe, read, canvas = pipes("kontext"), (88, 104), (64, 104)
    assert (pipe.settings.variant, pipe.settings.guidance) == ("kontext", 2.5)
    assert pipe.spec.read_size((104, 88)) == read  # 1104 x 944 at this checkpoint's scale
    want = theirs("kontext", 4, canvas, image=picture(1, read), _auto_resize=False, max_area=canvas[0] * canvas[1])
    request = Request.of(PROMPT, picture=picture(1, read), steps=STEPS, seed=4, height=canvas[0], width=canvas[1])
    assert error(ours(pipe, request), want) < LATENTS
    assert error(ours(pipe, dataclasses.replace(request, following=None)), want) > 1e-2
    # Without a picture it is a text model, here as there.
    alone = theirs("kontext", 4, canvas, max_area=canvas[0] * canvas[1])
    assert error(ours(pipe, dataclasses.replace(request, following=None)), alone) < LATENTS


@pytest.mark.usefixtures("torch")
def test_kontext_reads_the_sizes_of_its_training():
    """Every aspect finds the size that the reference's own rule gives."""
    from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS

    spec = Spec(FluxConfig(), Settings(variant="kontext"))
    for size in ((640, 480), (480, 640), (1000, 1000), (3000, 900), (1920, 1080), (700, 1600), (1024, 1100)):
        aspect = size[0] / size[1]
        _, w, h = min((abs(aspect - w / h), w, h) for w, h in PREFERRED_KONTEXT_RESOLUTIONS)
        assert spec.read_size(size) == (h, w)


def test_edit_keeps_its_size_and_compiles_once(pipes):
    pipe = pipes("kontext")
    (first, second) = pipe.edit(picture(1, (90, 100)), PROMPT, steps=STEPS, num_images=2)
    assert first.size == second.size == (104, 88)  # of its sizes, the one of the nearest aspect
    with Clock() as clock:
        pipe.edit(picture(2, (45, 50)), "a blue mug in a room", steps=STEPS, seed=7, num_images=2, guidance=2.0)
    assert clock.programs == 0


def test_the_method_works_on_kontext(pipes, pictures):
    """Without a picture of its own to read it is FLUX.1-dev, whose program replaces, inverts and finds masks."""
    pipe, car = pipes("kontext"), jaxpa.Subject(pictures / "car.png", pictures / "car-mask.png", caption="a car")
    (image,) = pipe.personalize("a car in a room", [car], steps=2, level="token", path="line", start="independent")
    assert image.size == (96, 96)
    text = pipe.encode_text(["a car"])
    assert isinstance(pipe.conditions(text, (12, 12), 1.0, None), FluxConditions)
    read = Beside(tokens=jax.numpy.zeros((1, 4, 32)), positions=jax.numpy.zeros((4, 3)))
    assert isinstance(pipe.conditions(text, (12, 12), 1.0, None, beside=read), Accompanied)


# Control pictures ---------------------------------------------------------------------------------------------


def test_control_equals_the_references(pipes, theirs):
    pipe = pipes("control")
    assert (pipe.settings.variant, pipe.settings.guidance) == ("control", 3.5)
    want = theirs("control", 5, control_image=picture(1))
    words = {"steps": STEPS, "seed": 5, "height": SIZE[0], "width": SIZE[1]}
    assert error(ours(pipe, Request.of(PROMPT, control=picture(1), **words)), want) < LATENTS
    assert error(ours(pipe, Request.of(PROMPT, control=picture(2), **words)), want) > 1e-2


def test_a_control_picture_gives_the_canvas_and_compiles_once(pipes):
    pipe = pipes("control")
    (image,) = pipe.generate(PROMPT, control=picture(1, (160, 192)), steps=STEPS)
    assert image.size == (104, 88)  # its aspect, the checkpoint's area
    with Clock() as clock:
        pipe.generate("a blue mug", control=picture(2, (160, 192)), steps=STEPS, seed=7)
    assert clock.programs == 0


def test_edges(pipes, monkeypatch):
    """By the thresholds on Sobel's sums: a step of 60 grey levels is an edge, one of 10 is none."""
    pixels = np.full((*SIZE, 3), 100, np.uint8)
    pixels[16:64, 16:80] = 160
    pixels[24:56, 24:40] = 170
    request = Request.of(PROMPT, control=Image.fromarray(pixels), edges=True, height=SIZE[0], width=SIZE[1])
    found: Any = pipes("control").prepare(request)
    white = found.picture[..., 0] == 1
    assert set(np.unique(found.picture)) == {-1, 1}
    rows, columns = np.nonzero(white)
    assert set(rows) | set(columns) <= set(range(15, 81))
    near = np.min(np.abs((rows - 15.5, rows - 63.5, columns - 15.5, columns - 79.5)), axis=0)
    assert near.max() <= 1
    assert len(rows) > 200  # of an outline of 220 pixels
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(JaxpaError, match=r"pip install 'jaxpa\[edges\]'"):
        pipes("control").prepare(request)
    with pytest.raises(JaxpaError, match=r"FLUX\.1-Depth follows depth, not edges"):
        request.check(dataclasses.replace(pipes("control").spec, settings=Settings(variant="depth")))


def test_replacement_follows_a_control_picture(pipes, pictures):
    """Where no network is asked about a reference; its tokens come, and the control picture counts."""
    pipe, car = pipes("control"), jaxpa.Subject(pictures / "car.png", pictures / "car-mask.png")
    told = {"level": "token", "path": "line", "start": "independent", "concat": None, "steps": 2}
    one, other = (pipe.personalize("a car", [car], control=picture(k, (96, 96)), **told)[0] for k in (1, 2))
    assert np.abs(np.asarray(one, float) - np.asarray(other, float)).mean() > 1
    changed = np.pad(np.full((96, 40), 255, np.uint8), ((0, 0), (0, 56)))
    (edited,) = pipe.inpaint(picture(3, (96, 96)), changed, PROMPT, control=picture(1, (96, 96)), feather=0, **told)
    np.testing.assert_array_equal(np.asarray(edited)[:, 40:], np.asarray(picture(3, (96, 96)))[:, 40:])
    with pytest.raises(JaxpaError, match="--level token --path line --concat none"):
        pipe.personalize("a car", [car], control=picture(1))
    with pytest.raises(JaxpaError, match="follows a control picture: give one with --control"):
        pipe.generate(PROMPT)


def test_what_the_text_model_refuses(pipes):
    pipe = jaxpa.load("mini")
    with pytest.raises(JaxpaError, match=r"edit asks for FLUX.1-Kontext, and this is FLUX.1;.*--variant kontext"):
        pipe.edit(picture(1), PROMPT)
    with pytest.raises(JaxpaError, match=r"a control picture would have no effect: FLUX\.1 reads none"):
        pipe.generate(PROMPT, control=picture(1))


# Redux ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def redux(folders, torch, tmp_path_factory):
    """A small FLUX.1-Redux as diffusers and transformers have it, its folder, and a pipeline with it."""
    import transformers
    from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder

    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
    config = transformers.SiglipVisionConfig(**sizes, image_size=30, patch_size=8)
    networks = {"image_encoder": transformers.SiglipVisionModel(config), "image_embedder": ReduxImageEncoder(24, 96)}
    folder = tmp_path_factory.mktemp("redux")
    for name, network in networks.items():
        with torch.no_grad():
            for value in network.parameters():
                value += 0.2 * torch.randn_like(value)
        network.eval().save_pretrained(folder / name)
    return networks, folder, jaxpa.load(folders("text"), redux=folder)


def test_redux_equals_the_references(redux, folders, torch):
    """The prior, then the pipeline: a picture and a prompt, or a picture alone."""
    from diffusers import FluxPriorReduxPipeline
    from transformers import SiglipImageProcessor

    networks, _, pipe = redux
    text = load_reference(folders("text"), "text")
    with torch.no_grad():
        txt, vec, _ = text.encode_prompt(PROMPT, PROMPT, max_sequence_length=32)
        prior = FluxPriorReduxPipeline(
            **networks, feature_extractor=SiglipImageProcessor(size={"height": 30, "width": 30}),
            **{name: getattr(text, name) for name in ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")},
        )  # fmt: skip
        noise = torch.tensor(np.array(pipe.noise(np.array([6]), pipe.grid(*SIZE))))
        words: dict[str, Any] = {"image_prompt": picture(1), "steps": STEPS, "seed": 6}
        words |= {"height": SIZE[0], "width": SIZE[1]}
        for prompt, given in ((PROMPT, (txt, vec)), ("", (torch.zeros_like(txt), torch.zeros_like(vec)))):
            said = prior(picture(1), prompt_embeds=given[0].clone(), pooled_prompt_embeds=given[1].clone())
            want = text(
                **said, latents=noise, num_inference_steps=STEPS, guidance_scale=pipe.settings.guidance,
                height=SIZE[0], width=SIZE[1], output_type="latent",
            ).images.numpy()  # fmt: skip
            assert said.prompt_embeds.shape == (1, 32 + 9, 96)
            assert error(ours(pipe, Request.of(prompt, **words)), want) < LATENTS
    assert error(ours(pipe, Request.of(PROMPT, **words | {"image_prompt": picture(2)})), want) > 1e-2


def test_an_image_prompt_compiles_once_and_is_refused_where_nothing_reads_it(redux, pictures, pipes, folders, tmp_path):
    _, folder, pipe = redux
    pipe.generate(PROMPT, image_prompt=picture(1), steps=STEPS)
    with Clock() as clock:
        pipe.generate("a blue mug", image_prompt=picture(2), steps=STEPS, seed=3)
    assert clock.programs == 0
    car = jaxpa.Subject(pictures / "car.png", pictures / "car-mask.png")
    with pytest.raises(JaxpaError, match="personalize by token replacement reads no image prompt"):
        pipe.personalize("a car", [car], image_prompt=picture(1))
    with pytest.raises(JaxpaError, match=r"needs FLUX\.1-Redux.*--redux"):
        pipes("kontext").generate(PROMPT, image_prompt=picture(1))
    with pytest.raises(CheckpointError, match="lacks image_encoder and image_embedder"):
        find_redux(folders("text"))
    with pytest.raises(CheckpointError, match=r"maps 24 channels to 96; .* should map 24 to 12"):
        load_redux(find_redux(folder), 12)
    for name in ("image_encoder", "image_embedder"):
        shutil.copytree(folder / "image_encoder", tmp_path / name)
    with pytest.raises(CheckpointError, match=r"image_embedder: this is another network"):
        load_redux(find_redux(tmp_path), 96)


def test_redux_is_planned(redux, folders, run, capsys, monkeypatch):
    """Its weights stay in every stage; counted by headers, they are as many as are loaded. It is looked for once."""
    _, folder, pipe = redux
    count = sum(x.size for x in jax.tree.leaves(pipe.redux))
    assert find_redux(folder).parameters == pipe.held.redux == count
    sought = []
    monkeypatch.setattr(redux_files, "locate", lambda *said: sought.append(said) or locate(*said))
    jaxpa.load(folders("text"), redux=folder)
    assert len(sought) == 1
    costs = []
    for words in ([], ["--redux", folder]):
        status, out, _ = run("plan", "--model", folders("text"), *words, "--references", 0, "--json")
        assert status == 0
        costs.append(json.loads(out))
    for name in ("text", "sample", "pictures"):
        assert costs[1]["stage_bytes"][name] - costs[0]["stage_bytes"][name] == 4 * count
    assert costs[1]["memory_bytes"] - costs[0]["memory_bytes"] == costs[1]["redux_bytes"] == 4 * count


def test_a_record_knows_its_redux(redux, tmp_path):
    """Where it lies does not count, and every number does, as far as samples go."""
    _, folder, _ = redux
    mini = resolve("mini")
    shutil.copytree(folder, again := tmp_path / "again")
    first, copied = (dataclasses.replace(mini, redux=find_redux(each)).sha256 for each in (folder, again))
    assert mini.sha256 != first == copied
    (file,) = (again / "image_embedder").glob("*.safetensors")
    tensors = load_file(file)
    save_file({name: x + 1 for name, x in tensors.items()}, file)
    assert dataclasses.replace(mini, redux=find_redux(again)).sha256 != first


# On the command line -------------------------------------------------------------------------------------------


def test_commands(run, folders, tmp_path):
    picture(1).save(tmp_path / "in.png")
    hole().save(tmp_path / "mask.png")
    given, out = ["--image", tmp_path / "in.png", "--prompt", "a cat", "--steps", 1], tmp_path / "out.png"
    status, line, err = run("inpaint", "--model", folders("fill"), *given, "--mask", tmp_path / "mask.png",
                            "--out", out, "--json")  # fmt: skip
    assert status == 0, err
    said = json.loads(line)
    assert (said["drawn_by"], said["guidance"], said["switches"]) == ("FLUX.1-Fill", 30.0, None)
    assert said["sample_forwards"] == 1
    assert said["files"] == [str(out)]
    status, line, err = run("edit", "--model", folders("kontext"), *given, "--out", out)
    assert status == 0, err
    assert "out-figure.png" in {path.name for path in tmp_path.iterdir()}
    status, line, err = run("generate", "--model", folders("control"), "--control", tmp_path / "in.png", "--prompt",
                            "a cat", "--steps", 2, "--out", tmp_path / "in.png")  # fmt: skip
    assert (status, "is an input of this command" in err) == (2, True)
    status, _, err = run("generate", "--image-prompt", tmp_path / "in.png", "--out", out)
    assert (status, "with --redux" in err) == (2, True)
    for verb, reads, said in (("invert", "fill", "as invert would have it"), ("edit", "control", "--variant kontext")):
        status, _, err = run(verb, "--model", folders(reads), *given, "--out", out)
        assert (status, err.count("\n"), said in err) == (2, 1, True), err


def test_plans(run, folders):
    """Kontext's picture doubles the image tokens; each plan is of what its model does, with its own settings."""

    def planned(reads: str, *words: Any) -> dict[str, Any]:
        status, line, err = run("plan", "--json", "--model", folders(reads), *words)
        assert status == 0, err
        return json.loads(line)

    alone, kontext, fill, control = (planned(*words) for words in (
        ("text", "--references", 0), ("kontext",), ("fill",), ("control",)))  # fmt: skip
    config = resolve(folders("kontext")).config.transformer
    assert (kontext["image_tokens"], kontext["picture_tokens"]) == (144, 144)
    assert kontext["tflop_per_forward"] == transformer_flops(config, 288, 32) / 1e12
    assert alone["tflop_per_forward"] == transformer_flops(config, 144, 32) / 1e12
    assert [each["steps"] for each in (alone, kontext, fill, control)] == [28, 30, 50, 28]
    assert [each["sample_forwards"] for each in (alone, kontext, fill, control)] == [28, 30, 50, 28]
    assert [each["drawn_by"] for each in (fill, planned("kontext", "--references", 1))] == [
        "FLUX.1-Fill", "token replacement"
    ]  # fmt: skip
    source = resolve(folders("text"))
    assert plan(source, Request(image_prompt="a.png"))["text_tokens"] == 32 + 729
    text = format_plan(kontext)
    assert "144 image + 32 text tokens + 144 of the picture" in text
    assert kontext["stage_bytes"]["sample"] > alone["stage_bytes"]["sample"]


@pytest.mark.parametrize(("reads", "beside"), [("fill", 0), ("control", 0), ("kontext", 12)])
def test_programs_for_devices(reads, beside):
    """What is compiled for a device that is not here samples tokens of the model's own channels, pictures read."""
    config = TransformerConfig(**SIZES, in_channels=CHANNELS[reads], out_channels=TOKEN)
    job = Job(config, (3, 4), text_tokens=5, images=2, steps=3, dtype=np.float32, beside=beside)
    function, arguments = program(job, make_mesh(1, 1), "cpu")
    assert jax.eval_shape(function, *arguments).shape == (2, 12, TOKEN)
    text = arguments[1]
    assert (text.channels is None, text.picture is None) == (reads == "kontext", reads != "kontext")


def test_bench_reads_what_the_model_reads(run, folders):
    status, line, err = run("bench", "--model", folders("fill"), "--steps", 1, "--repeats", 1, "--json")
    assert status == 0, err
    assert json.loads(line)
