"""Everyday controls on the command line: a picture to start from, files of prompts, variations, skipped steps."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxpa.cli.parse import parse_command
from jaxpa.cli.pictures import GenerateCommand
from jaxpa.encoders import text
from jaxpa.errors import JaxpaError
from jaxpa.media.images import read_metadata

STEPS = ("--steps", 2)


def pixels(file) -> np.ndarray:
    return np.asarray(Image.open(file), np.int32)


@pytest.fixture
def encoded(monkeypatch):
    """How often a prompt is encoded."""
    calls, before = [], text.encode
    monkeypatch.setattr(text, "encode", lambda *words: calls.append(1) or before(*words))
    return calls


def test_a_file_of_prompts(run, tmp_path, encoded):
    """Each line makes what --prompt makes of it; its number is in the names, its text in the pictures."""
    file, out = tmp_path / "prompts.txt", tmp_path / "out.png"
    file.write_text("# drawings\n\na red cat\n  a blue mug in a room  \n")
    given = ("--seed", 5, "--variations", 2, "--batch-size", 1, *STEPS)
    status, line, err = run("generate", "--prompts", file, *given, "--out", out, "--json")
    assert status == 0, err
    said = json.loads(line)
    assert len(encoded) == 2
    names = ["out-line3-seed5.png", "out-line4-seed5.png", "out-line3-seed6.png", "out-line4-seed6.png"]
    assert said["files"] == [str(tmp_path / name) for name in names]
    assert [read_metadata(tmp_path / name)["request"]["prompt"] for name in names[:2]] == [
        "a red cat",
        "a blue mug in a room",
    ]
    status, _, err = run("generate", "--prompt", "a blue mug in a room", *given, "--out", tmp_path / "one.png")
    assert status == 0, err
    assert len(encoded) == 3
    for seed in (5, 6):
        np.testing.assert_allclose(
            pixels(tmp_path / f"one-{seed}.png"), pixels(tmp_path / f"out-line4-seed{seed}.png"), atol=2
        )


def test_a_picture_holds_its_own_prompt_and_seed_alone(tmp_path):
    """Seeds of all prompts would not fit into a JPEG, and need not: every one holds its own."""
    file = tmp_path / "prompts.txt"
    file.write_text("a red cat\n" * 6000)
    words = ("--prompts", str(file), *STEPS, "--seed", "1000000000", "--out", str(tmp_path / "a.jpg"))
    prepared = parse_command(GenerateCommand, "generate", list(map(str, words)), "generate").prepare()
    assert len(str(prepared.request.sampling.seeds(6000))) > 48_000
    assert len(prepared.outputs.files) == 6000
    file.write_text(f"a red cat\n{'a red cat ' * 6000}")
    with pytest.raises(JaxpaError, match="there is room for 48,000"):
        parse_command(GenerateCommand, "generate", list(map(str, words)), "generate").prepare()


def test_prompts_from_stdin(run, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("a red cat\n"))
    status, line, err = run("generate", "--prompts", "-", *STEPS, "--out", tmp_path / "a.png", "--json")
    assert status == 0, err
    assert json.loads(line)["files"] == [str(tmp_path / "a.png")]


@pytest.mark.parametrize(("words", "said"), [
    (("--prompts", "none.txt"), "none.txt cannot be read"),
    (("--prompts", "empty.txt"), "empty.txt holds no prompt: write one a line"),
    (("--prompts", "one.txt", "--prompt", "a cat"), "--prompts stands in place of --prompt"),
    (("--prompts", "one.txt", "--out", "one.txt"), "are written as .png"),
    (("--prompt", "a cat", "--strength", "0.5"), "there is no --image to start from"),
    (("--prompt", "a cat", "--image", "none.png"), "none.png: no such file"),
    (("--prompt", "a cat", "--image", "car.png", "--strength", "0"), "strength 0 leaves none of the 28 steps"),
    (("--prompt", "a cat", "--image", "car.png", "--strength", "2"), "strength must be a finite number in [0, 1]"),
    (("--prompt", "a cat", "--image", "car.png", "--out", "car.png"), "is an input of this command"),
    (("--prompt", "a cat", "--sigmas", "0.5,x"), "--sigmas 'x' is not a number"),
    (("--prompt", "a cat", "--sigmas", "0.5,0.7"), "sigmas must fall, and 0.7 follows 0.5"),
    (("--prompt", "a cat", "--cache", "0.1", "--solver", "heun"), "heun asks it more often"),
])  # fmt: skip
def test_what_is_refused(run, tmp_path, monkeypatch, pictures, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("# nothing\n\n")
    (tmp_path / "one.txt").write_text("a cat\n")
    shutil.copy(pictures / "car.png", tmp_path)
    status, _, err = run("generate", *words)
    assert (status, err.count("\n"), said in err) == (2, 1, True), err


def test_image_to_image_and_skipped_steps(run, tmp_path, pictures):
    """Fewer steps are run, and of those the network may skip some; the report says how many forwards there were."""
    car, out = pictures / "car.png", tmp_path / "out.png"
    given = ("--image", car, "--prompt", "a blue car on a beach", "--out", out, "--json")
    status, line, err = run("generate", *given, "--strength", 0.25, "--shift", 1.0)
    assert status == 0, err
    said = json.loads(line)
    assert (said["steps"], said["sample_forwards"], said["width"]) == (7, 7, 96)
    assert "forwards_run" not in said
    assert said["request"]["starting"] == {"image": str(car), "strength": 0.25}
    near = np.abs(pixels(out) - np.asarray(Image.open(car).convert("RGB").resize((96, 96)), np.int32)).mean()
    status, line, err = run("generate", *given, "--strength", 1.0, "--cache", 0.1)
    assert status == 0, err
    said = json.loads(line)
    assert said["sample_forwards"] == 28
    assert 5 < said["forwards_run"] < 25
    far = np.abs(pixels(out) - np.asarray(Image.open(car).convert("RGB").resize((96, 96)), np.int32)).mean()
    assert near < far / 2
    status, line, err = run("plan", "--references", 0, "--sigmas", "1,0.5,0.1", "--json")
    assert (status, json.loads(line)["steps"]) == (0, 3), err


def test_lines_of_a_batch(run, tmp_path, pictures):
    """Lines that start from pictures are sampled together, and each is what it is alone."""
    shutil.copy(pictures / "car.png", tmp_path / "car.png")
    shutil.copy(pictures / "cat.png", tmp_path / "cat.png")
    rows = [
        {"prompt": "a blue car", "image": "car.png", "strength": 0.5, "steps": 4, "out": "1.png"},
        {"prompt": "a red cat", "starting": {"image": "cat.png", "strength": 0.5}, "steps": 4, "out": "2.png"},
        {"prompt": "a red cat", "steps": 2, "out": "3.png"},
        {"prompt": "a red cat", "sigmas": [0.9, 0.4], "cache": 0.2, "out": "4.png"},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    status, line, err = run("batch", tmp_path / "rows.jsonl", "--json")
    assert status == 0, err
    assert [json.loads(one)["steps"] for one in line.splitlines()] == [2, 2, 2, 2]
    alone = ("generate", "--prompt", "a red cat", "--out", tmp_path / "a.png")
    for file, words in (
        ("2.png", ("--image", tmp_path / "cat.png", "--strength", 0.5, "--steps", 4)),
        ("3.png", STEPS),
        ("4.png", ("--sigmas", "0.9,0.4", "--cache", 0.2)),
    ):
        status, _, err = run(*alone, *words)
        assert status == 0, err
        np.testing.assert_allclose(pixels(tmp_path / file), pixels(tmp_path / "a.png"), atol=2)
