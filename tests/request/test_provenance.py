"""The record of a picture: which request it answers by itself."""

import json

from PIL import Image

from jaxpa.media.images import save_image
from jaxpa.media.subjects import Subject
from jaxpa.request import provenance
from jaxpa.request.origin import read_origin
from jaxpa.request.record import from_json
from jaxpa.request.request import Request
from jaxpa.schedule import Steps


def test_the_request_of_one_picture():
    """Of all that a request asks for, what this picture shows; the record is the same after a walk through JSON."""
    whole = Request.of(
        "a car", subjects=[Subject("car.png", mask="mask.png")], places=[(0.2, 0.3), (0.4, 0.5)], tau=[0.5, "80%"],
        seed=3, num_images=4, steps=2,
    )  # fmt: skip
    networks = provenance.Networks(model="mini", sha256="f")
    versions = {"jaxpa": "0.1.0", "jax": "0.10", "device": "cpu"}
    made = provenance.Provenance(**versions, checkpoint=networks, request=whole, seed=5, tau=Steps(0.8), place=2)
    want = Request.of(
        "a car", subjects=whole.subjects, places=[(0.4, 0.5)], tau="80%", seed=5, steps=2,
    )  # fmt: skip
    assert made.single() == want
    assert made.single((7, 8)).sampling.seed == (7, 8)
    record = json.loads(json.dumps(made.as_record()))
    assert from_json(record, provenance.Provenance) == made
    assert next(iter(record)) == "format"


def test_an_empty_prompt_that_was_left_out(tmp_path):
    """Early records leave an empty prompt out, as they did all that is usual."""
    networks = provenance.Networks(model="mini", sha256="f")
    said = {"jaxpa": "0.1.0", "jax": "0.10", "device": "cpu", "checkpoint": networks}
    made = provenance.Provenance(**said, request=Request(prompt=""), seed=5)
    record = made.as_record()
    assert record["request"].pop("prompt") == ""
    save_image(Image.new("RGB", (8, 8)), tmp_path / "a.png", record)
    assert read_origin(tmp_path / "a.png")[0] == made
