"""What users call, on the embedded checkpoint: batches, seeds, guidance, sizes, the fused and the stepped form."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image
from toys import by_hand

import jaxpa
from jaxpa.checkpoint.parts import PARTS
from jaxpa.checkpoint.source import find_mini
from jaxpa.devices.timing import Clock
from jaxpa.encoders.text import TextEmbedding
from jaxpa.media.images import read_image, to_array
from jaxpa.personalize import PRESETS
from jaxpa.request.request import Request
from jaxpa.runs import personalized
from jaxpa.schedule import Steps
from weights.recipe.flow import reconfigured

# Steps of a matrix product whose rows stand in a batch of another size are summed in another order.
SAME = 2  # of 255
STEPS = 4


@pytest.fixture(scope="module")
def pipe():
    return jaxpa.load("mini")


@pytest.fixture(scope="module")
def undistilled(pipe):
    """The embedded checkpoint without its guidance embedding, as its teacher was: guidance takes two forwards."""
    config = replace(pipe.parts.config, transformer=replace(pipe.parts.config.transformer, guidance_embeds=False))
    transformer = reconfigured(pipe.parts.transformer, config.transformer)
    return jaxpa.Pipeline(replace(pipe.parts, config=config, transformer=transformer), pipe.tokenizers)


@pytest.fixture(scope="module")
def subject(pictures):
    return jaxpa.Subject(pictures / "car.png", pictures / "car-mask.png", caption="a yellow striped car in the snow")


def difference(a: Image.Image, b: Image.Image) -> int:
    return int(np.abs(np.asarray(a, np.int32) - np.asarray(b, np.int32)).max())


def test_an_image_depends_on_its_own_seed_alone(pipe):
    batch = pipe.generate("a red car on a beach", seed=[7, 3, 5], steps=STEPS)
    alone = pipe.generate("a red car on a beach", seed=5, steps=STEPS)
    assert difference(batch[2], alone[0]) <= SAME
    assert difference(batch[0], alone[0]) > 20
    grid = pipe.grid()
    assert np.array_equal(pipe.noise(np.array([7, 3, 5]), grid)[2], pipe.noise(np.array([5]), grid)[0])


def test_what_it_is_in_a_line(pipe):
    assert repr(pipe) == "<Pipeline: FLUX.1, float32>"


def test_stepped_is_fused(pipe, subject):
    seen = []
    hear = lambda step: seen.append(step[:3])  # noqa: E731
    kw = {"seed": 1, "steps": STEPS}
    fused = pipe.generate("a mug in a room", **kw)
    assert difference(pipe.generate("a mug in a room", **kw, on_step=hear)[0], fused[0]) <= 1
    assert seen == [*(("sample", i + 1, STEPS) for i in range(STEPS)), ("decode", 1, 1)]
    seen.clear()
    fused = pipe.personalize("a car in a room", [subject], **kw)
    assert difference(pipe.personalize("a car in a room", [subject], **kw, on_step=hear)[0], fused[0]) <= 1
    assert seen == [*((s, i + 1, STEPS) for s in ("invert", "sample") for i in range(STEPS)), ("decode", 1, 1)]


def test_loading_is_told_in_bytes():
    """After each network; all of them are what the files hold behind their headers."""
    seen = []
    jaxpa.load("mini", on_step=seen.append)
    files = [next((find_mini() / name).glob("*.safetensors")) for name in PARTS]
    sizes = [file.stat().st_size - 8 - int.from_bytes(file.read_bytes()[:8], "little") for file in files]
    assert [step[:3] for step in seen] == [("load", int(done), sum(sizes)) for done in np.cumsum(sizes)]


def test_what_a_step_takes_for_the_picture(pipe):
    """By its definition, x - t v, from the network itself; after the last step, it is the picture."""
    seen = []
    made = pipe.generate("a mug in a room", seed=[1, 4], steps=STEPS, on_step=seen.append)
    sampling = [step for step in seen if step.stage == "sample"]
    assert [step.tokens is None for step in seen] == [True] + [False] * STEPS + [True] * 2  # encoding, decoding
    velocity, grid = pipe.velocity(pipe.encode_text(["a mug in a room"] * 2)), pipe.grid()
    x, times = pipe.noise(np.array([1, 4]), grid), pipe.times(STEPS, grid)
    want = x - velocity(x, np.full(2, times[0], np.float32)) * times[0]
    np.testing.assert_allclose(sampling[0].tokens(), want, rtol=0, atol=1e-3)  # rounding, over a step of 1 / STEPS
    assert difference(sampling[0].picture(1), pipe.decode(want)[1]) <= 1
    assert difference(sampling[-1].picture(1), made[1]) == 0
    assert difference(sampling[0].picture(1), made[1]) > 20


def test_pictures_come_batch_by_batch(pipe):
    """Those of one batch are there before the next is sampled, and they are those of `make`."""
    request, seen = Request.of("a mug in a room", num_images=3, batch_size=2, steps=STEPS), []
    coming = pipe.stream(request, on_step=lambda step: seen.append(step.stage))
    first = next(coming)
    assert seen.count("sample") == STEPS
    made = [first, *coming]
    assert seen.count("sample") == 2 * STEPS
    assert [difference(*each) for each in zip(made, pipe.make(request), strict=True)] == [0, 0, 0]
    with pytest.raises(jaxpa.JaxpaError, match="steps"):
        pipe.stream(Request.of("a mug", steps=0))


def test_nothing_compiles_twice(pipe, subject, pictures):
    """A new prompt, seed, guidance, tau, subject, mask or place of the same sizes finds its programs compiled."""
    pipe.generate("a star at night", steps=STEPS)
    pipe.personalize("a car in a room", [subject], steps=STEPS)
    other = jaxpa.Subject(pictures / "cat.png", pictures / "cat-mask.png", at=(0.3, 0.6), flip=True, caption="a cat")
    with Clock() as clock:
        pipe.generate("a blue dotted fish under a night sky", seed=3, guidance=2.0, steps=STEPS)
        pipe.personalize("a cat in a desert", [other], seed=4, tau=0.9, guidance=2.0, steps=STEPS)
    assert clock.programs == 0


def test_classifier_free_guidance(pipe, undistilled, subject):
    """Away from a negative prompt: from the prompt itself it is none, from another it is; programs are kept."""
    prompt, kw = "a red star at night", {"seed": 1, "steps": STEPS}
    (plain,) = undistilled.generate(prompt, guidance=1.0, **kw)
    assert difference(undistilled.generate(prompt, guidance=3.0, negative_prompt=prompt, **kw)[0], plain) <= SAME
    (guided,) = undistilled.generate(prompt, guidance=3.0, **kw)
    assert difference(guided, plain) > 20
    undistilled.personalize(prompt, [subject], **kw)
    with Clock() as clock:
        assert difference(undistilled.generate(prompt, guidance=3.0, negative_prompt="snow", **kw)[0], guided) > 5
        undistilled.personalize("a mug", [subject], seed=2, tau=0.9, negative_prompt="snow", guidance=2.0, steps=STEPS)
    assert clock.programs == 0
    with pytest.raises(jaxpa.JaxpaError, match="embeds its guidance"):
        pipe.generate(prompt, negative_prompt="snow", **kw)


def test_guidance_inside(pipe, undistilled, subject):
    """What is fed to the subject's tokens has a guidance of its own: embedded with the reference, or token by token."""
    for model in (pipe, undistilled):
        inside = [
            model.personalize("a mug", [subject], preset=preset, tau=0.2, guidance=4.0, steps=STEPS)[0]
            for preset in (replace(PRESETS["mini"], guidance_inside=g) for g in (None, 4.0, 1.0))
        ]
        assert difference(inside[0], inside[1]) <= SAME
        assert difference(inside[0], inside[2]) > 5


def test_guidance_with_references(pipe, subject, pictures):
    """A checkpoint may have two: one of pictures of prompts alone, and one of pictures with references."""
    own, beside = pipe.settings.guidance, pipe.settings.guidance_with_references
    drawn, moved, filled = (
        {g: make(**({} if g is None else {"guidance": g}), steps=STEPS)[0] for g in (None, own, beside)}
        for make in (
            partial(pipe.generate, "a mug"),
            partial(pipe.personalize, "a mug", [subject], tau=0.9),
            partial(pipe.inpaint, pictures / "car.png", pictures / "car-mask.png", "a mug in a room", caption="a car"),
        )
    )
    for made, usual, other in ((drawn, own, beside), (moved, beside, own), (filled, beside, own)):
        assert difference(made[None], made[usual]) == 0
        assert difference(made[None], made[other]) > 5


def test_a_time_of_the_references_own(pipe, undistilled, subject):
    """Their rows are modulated for another time than the images', as the network itself does it; the time is data."""
    for model in (pipe, undistilled):
        said = {"subjects": (subject,), "steps": STEPS, "guidance": 3.0, "tau": 0.5}
        request = Request.of("a mug", **said, reference_time=0.62)
        references, seeds = model.prepare(request), np.array([3, 4])
        times, preset = request.times(model.spec, references.grid), request.switches(model.spec)
        tasks, x = model.tasks(request, references, (model.trajectory(references, preset, times), None), seeds)
        task = model.with_network(tasks[0])
        got = np.asarray(personalized(task, x, None))
        np.testing.assert_allclose(got, by_hand(task, x), rtol=0, atol=2e-4)  # rounding, over STEPS steps
        model.make(request)
        (plain,) = model.make(replace(request, method=replace(request.method, reference_time=None)))
        with Clock() as clock:
            (other,) = model.make(Request.of("a mug", **said, reference_time=0.3))
        assert clock.programs == 0
        assert difference(other, plain) > 3


def test_surroundings_come_first(pipe, undistilled, subject):
    """The images begin with them for a prompt, the references with their captions as ever; text and time are data."""
    text, around, said = "a red car in a room", "a room", {"steps": STEPS, "guidance": 3.0, "tau": 0.4}
    for model in (pipe, undistilled):

        def task_of(text: str, model=model, **more):
            request = Request.of(text, subjects=(subject,), **said, **more)
            references, seeds = model.prepare(request), np.array([3, 4])
            times = request.times(model.spec, references.grid)
            path = model.trajectory(references, request.switches(model.spec), times)
            (task,), x = model.tasks(request, references, (path, None), seeds)
            return model.with_network(task), x

        def made(text: str, model=model, **more):
            return model.personalize(text, [subject], **said, **more)[0]

        task, x = task_of(text, surroundings=around, surroundings_time=0.75)
        (first, _), (then, _) = task_of(around), task_of(text)
        assert 0 < np.sum(np.asarray(task.times) > 0.75) < np.sum(np.asarray(task.times) > 0.4)
        got = np.asarray(personalized(task, x, None))
        np.testing.assert_allclose(got, by_hand(then, x, (first.early, 0.75)), rtol=0, atol=2e-4)  # rounding
        assert np.abs(got - np.asarray(personalized(then, x, None))).max() > 0.1
        made(text, surroundings=around)
        with Clock() as clock:
            other, never = (made("a star", surroundings="a beach", surroundings_time=time) for time in (0.3, 1.0))
        assert clock.programs == 0
        plain = made("a star")
        assert difference(never, plain) <= SAME
        assert difference(other, plain) > 20


def test_lists_are_every_combination(pipe, subject):
    images = pipe.personalize(
        "a car in a room", [subject], tau=[1.0, 0.2], seed=[4, 9], at=[None, (0.4, 0.4)], steps=STEPS
    )
    assert len(images) == 8
    alone = pipe.personalize("a car in a room", [subject], tau=0.2, seed=9, at=[(0.4, 0.4)], steps=STEPS)
    assert difference(images[7], alone[0]) <= SAME


def test_blocks_have_their_own_tau(pipe, subject):
    """Of all blocks, it is that tau; of some, another picture; another value and other blocks compile nothing."""
    kw = {"steps": STEPS, "seed": 1, "tau": 0.9}
    make = lambda **words: pipe.personalize("a car in a room", [subject], **kw | words)[0]  # noqa: E731
    low, some = make(tau=0.3), make(tau_blocks={(0, 2): 0.3})
    with Clock() as clock:
        assert difference(make(tau_blocks={(0, 5): 0.3}), low) <= 1
        assert min(difference(some, other) for other in (low, make(tau_blocks="3-5=0.3"))) > 1
    assert clock.programs == 0
    assert difference(some, make()) > 1


def test_low_tau_brings_the_subject_and_leaves_the_prompt(pipe, subject):
    """The reference comes back inside the mask only; tau 1 with the image's own noise replaces nothing."""
    reference = pipe.references([subject])
    mask = reference.masks[0].reshape(12, 12).repeat(8, 0).repeat(8, 1)
    truth = reference.images[0]
    (image,) = pipe.personalize("a yellow striped car on a beach", reference, tau=Steps(0.2), steps=12)
    inside, outside = (np.corrcoef(to_array(image, 96, 96)[m].ravel(), truth[m].ravel())[0, 1] for m in (mask, ~mask))
    assert inside > 0.8 > outside
    said = {"guidance": 3.0, "steps": STEPS}
    plain = pipe.generate("a car in a room", **said)
    none = pipe.personalize("a car in a room", reference, tau=1.0, start="independent", **said)
    assert difference(plain[0], none[0]) <= SAME


@pytest.mark.parametrize("switches", [
    {"preset": "official"}, {"preset": "paper"}, {"level": "token"}, {"concat": "target", "path": "rf", "gamma": 0.5},
    {"path": "rf", "gamma": 0.5, "eta": 0.8, "level": "token", "concat": "zero"},
    {"solver": "heun", "concat": "joined"}, {"solver": "ab2", "level": "token", "soft": True},
    {"parts": "v", "blocks": (1, 4), "soft": True, "sweeps": 1},
], ids=str)  # fmt: skip
def test_every_switch_runs(pipe, subject, switches):
    (image,) = pipe.personalize("a car in a room", [subject], steps=2, **switches)
    assert np.asarray(image).std() > 5


def test_several_subjects_and_a_scene(pipe, subject, pictures):
    cat = jaxpa.Subject(pictures / "cat.png", pictures / "cat-mask.png", at=(0.5, 0.1, 0.95, 0.6))
    scene = jaxpa.Subject(pictures / "mug.png")
    references = pipe.references([subject, cat], scene)
    assert references.masks.shape == (3, 144)
    assert references.masks[0].all()
    assert np.asarray(references.placement.target).sum(-1).min() > 10
    (image,) = pipe.personalize("a car and a cat in a meadow", references, steps=2)
    assert image.size == (96, 96)


def test_arrays_and_tokens(pipe, pictures):
    """encode_image and decode are inverse up to the autoencoder; velocity is a callable of arrays."""
    picture = read_image(pictures / "car.png").resize((96, 96))
    tokens = pipe.encode_image([picture])
    assert tokens.shape == (1, 144, 32)
    error = np.mean((np.asarray(pipe.decode(tokens)[0], float) - np.asarray(picture, float)) ** 2)
    assert 10 * np.log10(255**2 / error) > 24
    velocity = pipe.velocity(pipe.encode_text(["a red car"]), guidance=1.0)
    assert jax.jit(velocity)(tokens, np.ones(1, np.float32)).shape == tokens.shape


def test_sizes_name_the_nearest(pipe):
    with pytest.raises(jaxpa.JaxpaError, match="nearest valid size is 96 x 104"):
        pipe.generate("x", width=97, height=102)
    with pytest.raises(jaxpa.JaxpaError, match="out of range"):
        pipe.generate("x", width=8000, height=8000)


def test_edits_keep_what_is_kept(pipe, pictures):
    """Kept pixels come back exactly, but for those that blend around the outline; the picture keeps its size."""
    picture = read_image(pictures / "mug.png").resize((96, 96))
    change = np.zeros((96, 96), np.uint8)
    change[:, :40] = 255
    (image,) = pipe.inpaint(picture, change, "a white striped mug in a meadow", steps=2, feather=0)
    assert np.array_equal(np.asarray(image)[:, 40:], np.asarray(picture)[:, 40:])
    assert difference(image, picture) > 20
    (soft,) = pipe.inpaint(picture, change, "a white striped mug in a meadow", steps=2)  # by half a token
    assert np.array_equal(np.asarray(soft)[:, 44:], np.asarray(picture)[:, 44:])
    assert np.array_equal(np.asarray(soft)[:, :40], np.asarray(image)[:, :40])
    assert not np.array_equal(np.asarray(soft)[:, 40:], np.asarray(picture)[:, 40:])
    (wide,) = pipe.outpaint(picture, "a mug in a meadow", (0, 48, 0, 0), steps=2)
    assert wide.size == (144, 96)


def test_an_inversion_comes_back(pipe, pictures):
    """The walk to noise and back loses little beside the autoencoder, and ends near unit variance."""
    made, noise = pipe.reconstruct(pictures / "mug.png", caption="a white striped mug in a meadow", steps=20)
    picture = to_array(read_image(pictures / "mug.png"), 96, 96)
    assert np.mean((to_array(made, 96, 96) - picture) ** 2) < 4 * 10**-2.4
    assert 0.7 < float(np.std(noise)) < 1.3


def test_perturbation_follows_the_seed(pipe, subject):
    """An image's own seed decides its perturbation, whatever the batch."""
    kw = {"steps": 2, "shuffle": 1.0, "outline": 3}
    pair = pipe.personalize("a car in a room", [subject], seed=[3, 4], **kw)
    alone = pipe.personalize("a car in a room", [subject], seed=4, **kw)
    assert difference(pair[1], alone[0]) <= SAME
    assert difference(pipe.personalize("a car in a room", [subject], seed=4, steps=2)[0], alone[0]) > SAME


@pytest.mark.parametrize(
    ("pad", "said"), [((0, 0, 0, 0), "not all 0"), ((-1, 0, 0, 9), "0 or more"), ((9**9, 0, 0, 0), "range")]
)
def test_bad_padding(pipe, pictures, pad, said):
    with pytest.raises(jaxpa.JaxpaError, match=said):
        pipe.outpaint(pictures / "mug.png", "a mug", pad)


def test_masks_that_leave_nothing(pipe, pictures):
    with pytest.raises(jaxpa.JaxpaError, match="nothing of the picture"):
        pipe.inpaint(pictures / "mug.png", np.ones((384, 384), bool), "a mug")
    with pytest.raises(jaxpa.JaxpaError, match="outline"):
        pipe.preset(outline=4)


def test_images_come_in_batches(pipe, subject):
    """Three at a time or all at once, the last batch filled up: the same pictures, in the same order."""
    prompts, kw = ["a red car", "a blue mug"], {"steps": 2, "num_images": 5}
    whole = pipe.generate(prompts, **kw)
    parts = pipe.generate(prompts, **kw, batch_size=3)
    assert [difference(*pair) <= SAME for pair in zip(whole, parts, strict=True)] == [True] * 5
    kw = {"steps": 2, "seed": [5, 7, 9], "tau": [0.9, 0.2], "at": [None, (0.4, 0.4)]}
    whole = pipe.personalize("a car in a room", [subject], **kw)
    parts = pipe.personalize("a car in a room", [subject], **kw, batch_size=4)
    assert [difference(*pair) <= SAME for pair in zip(whole, parts, strict=True)] == [True] * 12


def test_an_embedding_in_place_of_a_prompt(pipe, undistilled, subject, tmp_path):
    """From memory and from a file, alone and with references, it draws what its prompt draws."""
    file = tmp_path / "text.safetensors"
    pipe.encode_text(["a red star at night", "a blue mug in a room"]).save(file)
    prompts = pipe.generate(["a red star at night", "a blue mug in a room"], steps=2)
    for each in (pipe.encode_text(["a red star at night", "a blue mug in a room"]), TextEmbedding.load(file)):
        made = pipe.generate(each, steps=2)
        assert max(difference(*pair) for pair in zip(made, prompts, strict=True)) <= SAME
    one = pipe.encode_text("a car in a room")
    with_text = pipe.personalize("a car in a room", [subject], steps=2)
    assert difference(pipe.personalize(one, [subject], steps=2)[0], with_text[0]) <= SAME
    with pytest.raises(jaxpa.JaxpaError, match="takes one prompt"):
        pipe.personalize(TextEmbedding.load(file), [subject], steps=2)
    wrong = TextEmbedding(one.txt[..., :-1], one.vec)
    with pytest.raises(jaxpa.JaxpaError, match="another checkpoint"):
        pipe.generate(wrong)


def test_none_switches_off(pipe, subject):
    """concat=None over a preset that concatenates is the preset without it."""
    kw = {"steps": 2, "seed": 1, "tau": 0.9}
    without = replace(PRESETS["paper"], concat=None)
    off = pipe.personalize("a car", [subject], preset="paper", concat=None, **kw)
    assert difference(off[0], pipe.personalize("a car", [subject], preset=without, **kw)[0]) == 0
    assert difference(off[0], pipe.personalize("a car", [subject], preset="paper", **kw)[0]) > SAME


def test_a_caption_names_the_word(pipe, pictures):
    """A subject's mask is looked for in its own caption."""
    car = jaxpa.Subject(pictures / "car.png", word="car", caption="a yellow striped car in the snow")
    found = pipe.find_mask(pictures / "car.png", "car", "a yellow striped car in the snow")
    assert np.array_equal(pipe.with_mask(car).mask, found.pixels((384, 384)))
    with pytest.raises(jaxpa.JaxpaError, match="'mug' is not in '"):
        pipe.with_mask(replace(car, word="mug"))


@pytest.mark.parametrize(
    "words", [{"steps": 1.5}, {"num_images": 0}, {"seed": []}, {"height": "96"}, {"stepps": 3}], ids=str
)
def test_bad_arguments_are_named(pipe, words):
    with pytest.raises(jaxpa.JaxpaError, match=next(iter(words))):
        pipe.generate("a car", **words)


WRONG = {
    "a prompt": lambda pipe, car: pipe.encode_text("\udc80"),
    "a size": lambda pipe, car: pipe.grid(64.5, 64),
    "a mesh": lambda pipe, car: jaxpa.load("mini", mesh="data=2"),
    "whole numbers": lambda pipe, car: jaxpa.load("mini", "int32"),
    "no type": lambda pipe, car: jaxpa.load("mini", 3),
    "a word as a flag": lambda pipe, car: jaxpa.load("mini", resident="no"),
    "a number as a model": lambda pipe, car: jaxpa.load(3),  # type: ignore[arg-type]
    "a name as a scene": lambda pipe, car: pipe.personalize("a car", [car], "beach.png"),
    "a word": lambda pipe, car: pipe.find_mask(car.image, 3),
    "a caption": lambda pipe, car: pipe.find_mask(car.image, "car", 3),
    "a threshold": lambda pipe, car: pipe.find_mask(car.image, "car", threshold="0.5"),
    "a step": lambda pipe, car: pipe.attention("a car", at=0),
    "a block": lambda pipe, car: pipe.attention("a car", blocks=["first"]),
    "no padding": lambda pipe, car: pipe.outpaint(car.image, "a car", None),
    "no request": lambda pipe, car: pipe.make("a car"),
    "nothing to prepare": lambda pipe, car: pipe.prepare(None),
    "a place of references": lambda pipe, car: pipe.personalize("a car", pipe.references([car]), at=(0.5, 0.5)),
    "a scene beside references": lambda pipe, car: pipe.personalize("a car", pipe.references([car]), car),
    "a coverage of references": lambda pipe, car: pipe.personalize("a car", pipe.references([car]), coverage=0.9),
    "another height": lambda pipe, car: pipe.personalize("a car", pipe.references([car]), height=64),
    "two prompts": lambda pipe, car: pipe.attention(["a car", "a cat"]),
    "pictures of two sizes": lambda pipe, car: pipe.encode_image([np.zeros((8, 8, 3)), np.zeros((16, 8, 3))]),
    "no pictures": lambda pipe, car: pipe.encode_image([]),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_of_another_type_is_refused(pipe, subject, as_users_call, name):
    with pytest.raises(jaxpa.JaxpaError):
        WRONG[name](pipe, subject)


def test_what_a_picture_shows_must_be_said(pipe, subject):
    for make in (lambda: pipe.generate(None), lambda: pipe.personalize(None, [subject]), lambda: pipe.make(Request())):
        with pytest.raises(jaxpa.JaxpaError, match="give a --prompt"):
            make()
