"""Which values of a request are files, said in one place."""

from dataclasses import fields

import numpy as np

from jaxpa.media.images import Picture
from jaxpa.media.subjects import Subject
from jaxpa.request.groups import Editing, Following, Starting
from jaxpa.request.provenance import KEYS
from jaxpa.request.record import to_json
from jaxpa.request.request import FILES, Request, files_of, rename_files

REQUESTS = {
    "subjects": (
        Request(
            subjects=(Subject("a.png", mask="b.png", at=(0.5, 0.5)), Subject("c.png", word="car")),
            scene=Subject("d.png", mask="e.png"),
            image_prompt="f.png",
        ),
        "fabcde",
    ),
    "an edit": (Request(prompt="x", editing=Editing(image="a.png", mask="b.png")), "ab"),
    "a start": (Request(embedding="a.png", starting=Starting(image="b.png")), "ab"),
    "a picture that is followed": (Request(prompt="x", following=Following(picture="a.png")), "a"),
    "a control picture": (Request(prompt="x", following=Following(control="a.png")), "a"),
}


def test_every_file_and_nothing_else():
    for request, letters in REQUESTS.values():
        assert files_of(request) == [f"{letter}.png" for letter in letters]
        renamed = rename_files(request, lambda name: f"folder/{name}")
        text = str(to_json(request))
        for letter in letters:
            text = text.replace(f"'{letter}.png'", f"'folder/{letter}.png'")
        assert str(to_json(renamed)) == text


def test_what_is_in_memory_stays():
    picture = np.zeros((8, 8, 3), np.uint8)
    request = Request(subjects=(Subject(picture, mask="b.png"),))
    assert files_of(request) == ["b.png"]
    assert rename_files(request, str.upper).subjects[0].image is picture


def test_the_table_is_whole():
    """Every field whose type allows a picture or a path stands in it; a record knows the same names."""
    for kind, names in FILES.items():
        found = {each.name for each in fields(kind) if each.type == Picture or "PathLike" in str(each.type)}
        assert found <= set(names), kind
        assert set(names) <= KEYS
