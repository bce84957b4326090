"""The command of the page, and what the page draws with: the bytes of the command that it shows."""

import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxpa.app import desk
from jaxpa.app.desk import Piece, Said
from jaxpa.app.jobs import Drawn, Seen
from jaxpa.box import Box
from jaxpa.cli.app import AppCommand
from jaxpa.media.images import read_image, read_mask
from jaxpa.request.code import python_call


def test_the_page_the_command_and_python_draw_the_same(run, pictures, tmp_path, monkeypatch):
    page, own = tmp_path / "page", tmp_path / "own"
    page.mkdir()
    studio = AppCommand().studio(page)
    room = studio.room("session")
    car = Piece(
        read_image(pictures / "car.png"), read_mask(pictures / "car-mask.png") > 0.5, at=Box(0.1, 0.3, 0.7, 0.9)
    )
    request = desk.personalize(
        room, [car], None, Said("a car on a beach", seed=5, steps=2, taus=(0.9, 0.4)), studio.spec
    )
    inputs = list(room.iterdir())
    *steps, drawn = studio.run(request, room)
    assert isinstance(drawn, Drawn)
    assert {step.stage for step in steps if isinstance(step, Seen)} == {"invert", "sample", "decode"}
    previews = [step.preview for step in steps if isinstance(step, Seen) and step.preview is not None]
    assert {preview.size for preview in previews} == {(96, 96)}
    assert drawn.labels == ["tau0.9", "tau0.4"]

    own.mkdir()
    for file in inputs:
        (own / file.name).write_bytes(file.read_bytes())
    monkeypatch.chdir(own)
    words = shlex.split(shlex.join(studio.words(request)))  # as one copies them
    status, _, err = run(*words)
    assert status == 0, err
    for file in drawn.files:
        assert (own / file.name).read_bytes() == file.read_bytes()

    one = replace(request, method=replace(request.method, tau=(0.9,)))
    exec(python_call(one, studio.checkpoint, "python.png"), {})
    first = np.asarray(read_image(drawn.files[0]))
    assert (np.asarray(read_image(Path("python.png"))) == first).all()


def test_the_extra_is_named(run, monkeypatch):
    monkeypatch.setattr("jaxpa.cli.app.find_spec", lambda name: None)
    status, _, err = run("app")
    assert (status, err.count("\n")) == (2, 1)
    assert "pip install 'jaxpa[app]'" in err


@pytest.mark.parametrize("words", [["--port", "0"], ["--max-upload", "0"], ["--hots", "x"]])
def test_wrong_flags_are_a_line(run, words, monkeypatch):
    monkeypatch.setattr("jaxpa.cli.app.find_spec", lambda name: True)
    status, _, err = run("app", *words)
    assert (status, err.count("\n")) == (2, 1)
