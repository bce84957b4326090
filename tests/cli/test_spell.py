"""A request as words: the parser reads the same request out of them, whatever they hold."""

import pytest
from asked import REQUESTS

from jaxpa.cli.lines import JOBS
from jaxpa.cli.parse import parse_command
from jaxpa.cli.spell import words_of
from jaxpa.errors import JaxpaError
from jaxpa.media.subjects import Subject
from jaxpa.presets import PRESETS
from jaxpa.request.groups import Checkpoint, Following, Method, Sampling
from jaxpa.request.record import to_json
from jaxpa.request.request import Request

MORE = {
    "odd words": Request(prompt="--steps 3", sampling=Sampling(negative_prompt="-x", solver="heun", num_images=3)),
    "off": Request(
        prompt="b",
        subjects=(Subject("a b.png", caption="-"),),
        method=Method(blocks=None, tau_blocks=()),
    ),
    "edges": Request(prompt="b", following=Following(control="c.png", edges=True)),
    "edit": Request(prompt="make it red", following=Following(picture="c.png")),
}
CHECKPOINTS = [
    Checkpoint(),
    Checkpoint(model="a folder", weights="int8", lora=("a.safetensors:0.5", "b.safetensors"), keep_resident=False),
]


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=["mini", "another"])
@pytest.mark.parametrize("name", [*REQUESTS, *MORE])
def test_the_words_say_the_same(name, checkpoint):
    request = {**REQUESTS, **MORE}[name]
    verb, *words = words_of(request, checkpoint, "out.png")
    command = parse_command(JOBS[verb], verb, words, verb)
    assert to_json(command.request()) == to_json(request)
    assert (command.checkpoint, str(command.out)) == (checkpoint, "out.png")


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (Request(prompt=("a", "b")), "one prompt"),
        (Request(prompt="a", method=Method(preset=PRESETS["mini"])), "no flag says"),
        (Request(prompt="a", scene=Subject("s.png", flip=True)), "flip"),
    ],
)
def test_what_no_flag_says_is_refused(request_, says):
    with pytest.raises(JaxpaError, match=says):
        words_of(request_, Checkpoint(), "a.png")


def test_a_file_that_looks_like_a_flag_is_still_that_file():
    words = words_of(Request(prompt="a", subjects=(Subject("-a.png", mask="--b"),)), Checkpoint(), "out.png")
    (subject,) = parse_command(JOBS["personalize"], "personalize", words[1:], "").request().subjects
    assert (subject.image, subject.mask) == ("./-a.png", "--b")
