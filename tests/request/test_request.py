"""A request: what it refuses, that JSON carries it whole, and that every way of asking makes the same one."""

import dataclasses
import json
import typing
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxpa.config import FluxConfig, Settings, flux_schnell
from jaxpa.devices.plan import run_of
from jaxpa.errors import JaxpaError
from jaxpa.media.subjects import Subject
from jaxpa.presets import PRESETS, BlockTau, Preset
from jaxpa.request.groups import UNSET, Editing, Following, Method, Sampling, Starting, Unset
from jaxpa.request.record import from_json, schema, to_json
from jaxpa.request.request import Request
from jaxpa.request.spec import Spec
from jaxpa.request.taus import parse_tau, show_tau
from jaxpa.routing import block_taus
from jaxpa.schedule import Steps

DEV, SCHNELL = Spec(FluxConfig(), Settings()), Spec(flux_schnell(), Settings(guidance=0.0))


def test_a_switch_of_the_method_is_one_of_the_preset():
    """The same names and the same literals, or `UNSET`; None only where the preset has it."""
    preset, method = (typing.get_type_hints(cls) for cls in (Preset, Method))
    for name in preset.keys() - {"tau", "inpaint_tau", "outpaint_tau"}:
        assert set(typing.get_args(method[name] | Unset)) == set(typing.get_args(preset[name] | Unset)), name
        assert getattr(Method(), name) is UNSET


def test_none_is_a_value():
    """concat and guidance_inside of a preset are switched off by None, and left alone by saying nothing."""
    assert Method(preset="paper").switches("mini").concat == PRESETS["paper"].concat
    assert Method(preset="paper", concat=None).switches("mini").concat is None
    assert Method().switches("mini") == PRESETS["mini"]
    assert Method(guidance_inside=None).switches("mini").guidance_inside is None


REQUESTS = (
    Request(prompt="a red car"),
    Request(prompt=("a", "b"), sampling=Sampling(seed=(3, 4), steps=2, guidance=2.5, negative_prompt="snow")),
    Request.of(
        "a car", subjects=[Subject("car.png", mask="mask.png", at=(0.2, 0.5), flip=True, caption="x", word="car")],
        scene=Subject("room.png"), places=[(0.2, 0.3), None], tau=[0.5, Steps(0.123456789), 0.1 + 0.2], concat=None,
        guidance_inside=None, level="token", preset="paper", gamma=0.5,
    ),
    Request.of("a car", subjects=[Subject("car.png")], tau_blocks={(0, 3): 0.25, (5, 9): Steps(0.4)}),
    Request.of("a car", preset=replace(PRESETS["mini"], tau_blocks=(BlockTau(0, 3, 0.25),))),
    Request.of("a car", image="a.png", mask="m.png", grow=2, feather=3.5, caption="a mug"),
    Request.of("a car", image="a.png", pad=(1, 2, 3, 4), preset=PRESETS["paper"]),
    Request.of("a car", subjects=[Subject("car.png")], surroundings="a beach", surroundings_time=0.7),
    Request(embedding="text.safetensors"),
    Request.of("make it red", picture="a.png"),
    Request(image_prompt="a.png"),
    Request.of("a car", control="edges.png", image="a.png", mask="m.png"),
    Request.of("a car", image="a.png", strength=0.3, sigmas=(1.0, 0.25), shift=2.5, cache=0.1),
)  # fmt: skip


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: request.verb)
def test_json_and_back(request_):
    text = json.dumps(to_json(request_))
    assert from_json(text) == request_
    assert from_json(json.loads(text)) == request_


def test_json_leaves_out_what_is_not_said():
    assert to_json(Request(prompt="a car")) == {"prompt": "a car"}
    assert to_json(REQUESTS[2])["method"]["concat"] is None
    with pytest.raises(JaxpaError, match="image is not a file"):
        to_json(Request(subjects=(Subject(np.zeros((4, 4, 3), np.uint8)),)))


def test_a_request_that_says_nothing():
    """Nothing, which a plan takes, is told from an empty prompt, which is one; JSON keeps them apart."""
    for said in (Request(), Request(sampling=Sampling(seed=3)), from_json('{"prompt": null}')):
        with pytest.raises(JaxpaError, match="give a --prompt: what the picture shows"):
            said.with_prompt()
    for said in (Request(prompt=""), Request(embedding="a.safetensors"), Request(image_prompt="a.png")):
        assert said.with_prompt() is said
        assert from_json(to_json(said)) == said
    assert to_json(Request(prompt="")) == {"prompt": ""}


def test_the_schema_names_every_field():
    """Checked against the dataclasses, and it knows a wrong value."""
    found = schema()
    assert found["additionalProperties"] is False
    assert set(found["properties"]) == {each.name for each in dataclasses.fields(Request)}
    for group in (Sampling, Method, Editing, Starting, Following, Subject):
        assert set(found["$defs"][group.__name__]["properties"]) == {each.name for each in dataclasses.fields(group)}
    json.dumps(found)


@pytest.mark.parametrize(("data", "said"), [
    ({"promt": "x"}, "promt"), ({"sampling": {"steps": "3"}}, "sampling.steps"), ('{"prompt": ', "Invalid JSON"),
    ({"sampling": {"steps": 0}}, "steps must be"), ({"method": {"level": "Layer"}}, "method.level"),
    ({"method": {"tau": ["x"]}}, "tau 'x'"), ({"method": {"tau_blocks": ["3=x"]}}, "tau 'x'"),
    ({"subjects": [{"image": 3}]}, "subjects.0.image"),
    ({"subjects": [{"image": "a.png", "at": "left"}]}, r"^subjects.0.at: [^;]*$"),
    ({"sampling": {"guidance": float("nan")}}, "guidance"), ([], "request: "),
])  # fmt: skip
def test_bad_json(data, said):
    with pytest.raises(JaxpaError, match=said):
        from_json(data)


def test_numbers_of_other_libraries():
    """Scalars of NumPy and JAX are numbers; they become plain ones, so that JSON takes them."""
    sampling = Sampling(seed=np.int64(3), steps=np.int32(2), guidance=np.float32(2.5), height=jnp.int32(64))
    assert sampling == Sampling(seed=3, steps=2, guidance=2.5, height=64)
    assert Sampling(seed=np.arange(2)).seed == (0, 1)
    assert Method(tau=np.float32(0.5)).tau == Method(tau=jnp.float32(0.5)).tau == (0.5,)
    assert json.dumps(to_json(Request(sampling=sampling)))


BAD = {
    "seed": {"seed": -1}, "no seed": {"seed": []}, "a float seed": {"seed": 1.5}, "a word": {"seed": "x"},
    "a large seed": {"seed": 2**32}, "one too large": {"seed": 2**32 - 1, "num_images": 2},
    "no images": {"num_images": 0},
    "images": {"num_images": -8}, "a bool": {"num_images": True}, "steps": {"steps": 1.5}, "no steps": {"steps": 0},
    "many steps": {"steps": 10**9}, "guidance": {"guidance": float("inf")}, "negative": {"guidance": -1.0},
    "height": {"height": 0}, "width": {"width": -8}, "tau": {"tau": 1.5}, "tau in words": {"tau": "80"},
    "a share": {"tau": Steps(2.0)}, "level": {"level": "Layer"}, "path": {"path": "Line"}, "start": {"start": "Moved"},
    "concat": {"concat": "zeros"}, "preset": {"preset": "papers"}, "gamma": {"gamma": 2}, "outline": {"outline": 4},
    "coverage": {"coverage": 2}, "margin": {"margin": -1}, "place": {"places": [(0.5,)]}, "a keyword": {"stepps": 4},
    "a prompt": {"prompt": []}, "a number as prompt": {"prompt": 3}, "a subject": {"subjects": ["car.png"]},
    "surrogates": {"prompt": "\udc80"}, "two kinds": {"subjects": [Subject("a")], "image": "a", "mask": "b"},
    "both": {"picture": "a.png", "control": "b.png"}, "an edit and a mask": {"picture": "a", "image": "a", "mask": "b"},
    "blocks backwards": {"tau_blocks": ["9-3=0.5"]}, "no blocks": {"tau_blocks": "0.5"},
    "a block twice": {"tau_blocks": ["0-3=0.5", "3-4=0.6"]}, "a tau of blocks": {"tau_blocks": {(0, 3): 2}},
    "no mapping": {"tau_blocks": [(0, 3, 0.5)]}, "blocks of tokens": {"tau_blocks": ["0-3=0.5"], "level": "token"},
    "an edit of nothing": {"image": "a.png", "caption": "a mug"}, "a strength of nothing": {"strength": 0.5},
    "a large strength": {"image": "a.png", "strength": 1.1}, "a start and an edit": {"picture": "b", "image": "a.png"},
    "a start and a mask": {"image": "a.png", "mask": "b.png", "strength": 0.5}, "no sigmas": {"sigmas": []},
    "rising": {"sigmas": [0.5, 0.7]}, "the end": {"sigmas": [1, 0]}, "beyond noise": {"sigmas": [1.2, 0.5]},
    "twice": {"sigmas": [0.5, 0.5]}, "sigmas and steps": {"sigmas": [1, 0.5], "steps": 3}, "shift": {"shift": 0},
    "cache": {"cache": -0.1}, "cache of heun": {"cache": 0.1, "solver": "heun"}, "sigmas in words": {"sigmas": "1,0.5"},
    "places of nothing": {"places": [(0.5, 0.5)]}, "digits without end": {"seed": 10**5000},
    "a float without end": {"guidance": 10**400}, "beyond float32": {"guidance": 1e38}, "bytes": {"seed": b"3"},
    "a flag": {"shift": np.bool_(True)}, "infinite inside": {"guidance_inside": float("inf")},
    "complex": {"gamma": 1j}, "an outline in words": {"outline": "3"}, "half an outline": {"outline": 1.5},
    "a wide outline": {"outline": 10**10 + 1}, "many sweeps": {"sweeps": 10**9}, "a wide margin": {"margin": 10**20},
    "a block twice, far": {"tau_blocks": ["0-99999999999=0.5", "5-6=0.1"]}, "a number of blocks": {"tau_blocks": 3},
    "edges in words": {"control": "a.png", "edges": "no"}, "a name as scene": {"scene": "beach.png"},
    "a name as group": {"sampling": "fast"}, "no subjects": {"subjects": 3}, "no scalar": {"prompt": np.array(3)},
    "no places": {"places": 3, "subjects": [Subject("a.png")]}, "a caption": {"image": "a", "mask": "b", "caption": 3},
    "surrogates elsewhere": {"negative_prompt": "\udc80"}, "surroundings": {"surroundings": 3},
    "a time of surroundings": {"surroundings": "a beach", "surroundings_time": 1.5},
    "fewer seeds than prompts": {"prompt": ["a", "b"], "seed": [7]},
    "a prompt twice": {"prompt": "a", "embedding": "a.safetensors"},
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_values_are_refused_when_they_are_given(name):
    with pytest.raises(JaxpaError):
        Request.of(**BAD[name])


def test_a_subject_says_what_is_wrong_with_it():
    for words in ({"flip": "no"}, {"stretch": 1}, {"caption": None}, {"word": "\udc80"}, {"at": 10**400}):
        with pytest.raises(JaxpaError, match=next(iter(words))):
            Subject("a.png", **words)
    assert Subject("a.png", flip=np.bool_(True)).flip is True
    assert Request(subjects=Subject("a.png")) == Request(subjects=(Subject("a.png"),))  # one is a list of one
    assert Method(blocks=[1, 2]) == Method(blocks=(1, 2))


def test_the_nearest_word():
    for words, near in (({"stepps": 4}, "'steps'"), ({"level": "Layer"}, "'layer'"), ({"preset": "papr"}, "'paper'")):
        with pytest.raises(JaxpaError, match=f"did you mean {near}"):
            Request.of(**words)


def test_a_tau_of_blocks():
    """Written in words, as a mapping, or as it is kept: the same value, and the lowest is what a run waits for."""
    same = [BlockTau(0, 9, 0.25), BlockTau(12, 12, Steps(0.4))]
    for said in (same, ["0-9=0.25", "12=40%"], {(0, 9): 0.25, (12, 12): Steps(0.4)}):
        assert Method(tau_blocks=said).tau_blocks == tuple(same)
    assert to_json(Request.of(tau_blocks=same)) == {"method": {"tau_blocks": ["0-9=0.25", "12-12=40%"]}}
    times = np.linspace(1, 0, 11, dtype=np.float32)
    want = np.float32([0.25] * 10 + [0.8] * 2 + [0.45] + [0.8])  # 40% of ten steps remain below (0.5 + 0.4) / 2
    np.testing.assert_array_equal(block_taus(0.8, same, times, 14), want)
    assert block_taus(0.8, (), times, 14).shape == ()
    assert run_of(Request.of(subjects=[Subject("a.png")], tau_blocks=["3-4=0.2"], tau=0.8), DEV).gates == [
        np.float32(0.2)
    ]
    with pytest.raises(ValueError, match="out of 0 to 11"):
        block_taus(0.8, same, times, 12)


@pytest.mark.parametrize(("words", "said"), [
    ({"tau_blocks": ["50-57=0.5"]}, "tau_blocks must lie in 0 to 56 here, not 50-57"),
    ({"gamma": 0.5, "path": "ode"}, "gamma would have no effect"),
    ({"eta": 0.5, "level": "token", "concat": None}, "eta would have no effect"),
    ({"sweeps": 2, "path": "line"}, "sweeps would have no effect"),
    ({"surroundings_time": 0.5}, "surroundings_time would have no effect"),
    ({"margin": 2, "start": "independent"}, "margin would have no effect"), ({"height": 100}, "nearest valid size"),
    ({"negative_prompt": "snow"}, "embeds its guidance"),
    ({"guidance_inside": 2.0, "level": "token"}, "guidance_inside would have no effect"),
])  # fmt: skip
def test_what_a_checkpoint_would_not_read_is_refused_before_it_loads(words, said):
    with pytest.raises(JaxpaError, match=said):
        Request.of(subjects=[Subject("a.png")], **words).check(DEV)


@pytest.mark.parametrize("words", [{"negative_prompt": "snow"}, {"guidance_inside": 2.0}])
def test_what_leads_away_needs_guidance(words):
    """FLUX.1-schnell's own guidance is 0, so it takes one forward a step."""
    said = {"prompt": "a car", "subjects": [Subject("a.png")], **words}
    with pytest.raises(JaxpaError, match="would have no effect"):
        Request.of(**said).check(SCHNELL)
    Request.of(guidance=2.0, **said).check(SCHNELL)


@pytest.mark.parametrize("words", [{"tau": 0.5}, {"surroundings": "a beach"}, {"preset": "paper"}])
def test_what_says_how_to_replace_needs_something_to_put(words):
    with pytest.raises(JaxpaError, match=f"{next(iter(words))} would have no effect"):
        Request.of("a car", **words).check(DEV)


@pytest.mark.parametrize("tau", [0.0, 1.0, 0.123456789, 0.1 + 0.2, Steps(0.8), Steps(1 / 3)])
def test_tau_is_shown_as_it_is_read(tau):
    assert parse_tau(show_tau(tau)) == tau


def test_an_edit_varies_nothing_unless_told():
    edit = Request.of("x", image=Path("a.png"), pad=(0, 8, 0, 0), preset="paper")
    assert (edit.switches(DEV).shuffle, edit.switches(DEV).outline) == (0.0, 0)
    assert (edit.switches(DEV).start, edit.switches(DEV).margin) == ("moved", 0)  # the kept part's own noise
    assert edit.taus(DEV) == (PRESETS["paper"].outpaint_tau,)
    told = Request.of("x", image=Path("a.png"), pad=(0, 8, 0, 0), preset="paper", shuffle=0.5)
    assert told.switches(DEV).shuffle == 0.5
