"""A request as Python: the lines, run with a `jaxpa` that only listens, ask for the very same request."""

import sys
from types import SimpleNamespace

import pytest
from asked import REQUESTS

import jaxpa
from jaxpa.errors import JaxpaError
from jaxpa.media.subjects import Subject
from jaxpa.pipeline import Pipeline
from jaxpa.request.code import python_call
from jaxpa.request.groups import Checkpoint
from jaxpa.request.request import Request
from jaxpa.schedule import Steps


class Listening(Pipeline):
    """Whatever is asked of it, it keeps the request."""

    def __init__(self):
        object.__setattr__(self, "asked", [])

    def make(self, request, prepared=None, on_step=None):
        self.asked.append(request)
        return [SimpleNamespace(save=self.asked.append)]


@pytest.mark.parametrize("name", REQUESTS)
def test_the_lines_ask_for_the_same(name, monkeypatch):
    pipe = Listening()
    monkeypatch.setitem(sys.modules, "jaxpa", SimpleNamespace(load=lambda *a: pipe, Subject=Subject, Steps=Steps))
    exec(python_call(REQUESTS[name], Checkpoint(), "out.png"), {})
    assert pipe.asked == [REQUESTS[name], "out.png"]


def test_the_checkpoint_is_loaded_as_it_is_said(monkeypatch):
    heard = []

    def load(*args, **keywords):
        heard.append((args, keywords))
        return Listening()

    monkeypatch.setattr(jaxpa, "load", load, raising=False)
    said = Checkpoint(
        model="some/folder", dtype="bfloat16", weights="int8", lora=("a.safetensors:0.5",), keep_resident=True
    )
    exec(python_call(Request(prompt="a cat"), said, "out.png"), {})
    loras = [("a.safetensors", 0.5)]
    assert heard == [(("some/folder",), {"dtype": "bfloat16", "weights": "int8", "loras": loras, "resident": True})]


def test_a_picture_in_memory_has_no_name():
    from PIL import Image

    with pytest.raises(JaxpaError, match="not a file"):
        python_call(Request(prompt="a cat", subjects=(Subject(Image.new("RGB", (8, 8))),)), Checkpoint(), "a.png")
