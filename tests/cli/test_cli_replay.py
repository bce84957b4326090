"""Pictures that say how they were made: what stands in them, and that it makes them again."""

import hashlib
import json
import shutil
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin

from jaxpa.checkpoint.source import find_mini
from jaxpa.cli.lines import JOBS
from jaxpa.cli.parse import parse_command
from jaxpa.media.images import save_image
from jaxpa.request.record import to_json


def record_of(file: Path) -> dict:
    """The record as any program finds it: in PNG's text, or in EXIF's user comment."""
    with Image.open(file) as image:
        if file.suffix == ".png":
            return json.loads(image.info["jaxpa"])
        comment = image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    return json.loads(comment.removeprefix(b"ASCII\0\0\0"))["jaxpa"]


@pytest.fixture
def folder(tmp_path, monkeypatch, pictures) -> Path:
    """A working directory with the pictures of a car."""
    for name in ("car.png", "car-mask.png"):
        shutil.copy(pictures / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


CAR = ["--subject", "car.png", "--mask", "car-mask.png"]
STEPS = ["--prompt", "a car", "--steps", 2]
TWO = [*STEPS, "--num-images", 2, "--no-figure"]  # all of one shape, so that they share their programs
SQUARE = ["--height", 96, "--width", 96]
VERBS = {
    "generate": (["generate", *STEPS, "--num-images", 2, "--seed", 5, "--guidance", 3, "--out", "o.png"], "o-6.png"),
    "a layout": (
        ["personalize", *CAR, *STEPS, "--tau", "0.9", "50%", "--place", "0.4,0.5", "--place", "0.5,0.5", "--out",
         "o.webp", "--no-figure"], "o-tau50%-place2.webp",
    ),
    "a word": (
        ["personalize", "--subject", "car.png", "--word", "car", *TWO, "--out", "o.jpg"], "o-1.jpg",
    ),
    "inpaint": (["inpaint", "--image", "car.png", "--mask", "car-mask.png", *TWO, "--out", "o.jpg"], "o-1.jpg"),
    "outpaint": (["outpaint", "--image", "car.png", "--pad", "32", *SQUARE, *TWO, "--out", "o.webp"], "o-0.webp"),
    "a mask": (
        ["mask", "--image", "car.png", "--word", "car", "--grow", 3, "--coverage", "0.2", "--out", "o.png"], "o.png",
    ),
    "a box": (["mask", "--image", "car.png", "--box", "0.1,0.2,0.9,0.9", "--feather", 2, "--out", "o.webp"], "o.webp"),
    "a start": (
        ["generate", "--image", "car.png", "--strength", "0.5", *SQUARE, *STEPS, "--num-images", 2, "--out", "o.png"],
        "o-1.png",
    ),
    "edit": (["edit", "--variant", "kontext", "--image", "car.png", *STEPS, "--out", "o.png"], "o.png"),
}  # fmt: skip


@pytest.mark.parametrize("name", VERBS)
def test_a_picture_again(run, folder, name):
    """To the byte, though it is made by itself and the first one was made beside others."""
    words, file = VERBS[name]
    status, _, err = run(*words)
    assert status == 0, err
    record = record_of(folder / file)
    assert (record["jaxpa"], record["jax"]) == (metadata.version("jaxpa"), metadata.version("jax"))
    assert str(folder) not in json.dumps(record)
    status, out, err = run("replay", file, "--out", f"again{Path(file).suffix}", "--json")
    assert status == 0, err
    said = json.loads(out)
    assert (said["same_bytes"], said["differs"]) == (True, [])
    assert (folder / f"again{Path(file).suffix}").read_bytes() == (folder / file).read_bytes()


def test_other_seeds_and_alone(run, folder):
    """Another seed gives the picture that was made beside it; by itself, it is another program."""
    assert run("generate", *STEPS, "--num-images", 2, "--out", "o.png")[0] == 0
    assert run("replay", "o-0.png", "--seed", 1, 7, "--out", "p.png")[0] == 0
    assert (folder / "p-1.png").read_bytes() == (folder / "o-1.png").read_bytes()
    assert record_of(folder / "p-7.png")["seed"] == record_of(folder / "p-7.png")["request"]["sampling"]["seed"] == 7
    status, out, err = run("replay", "o-1.png", "--alone", "--out", "alone.png", "--json")
    assert status == 0
    assert "may differ by a grey level" in err
    assert json.loads(out)["largest_difference"] <= 1
    assert record_of(folder / "alone.png").get("program", {}) == {}
    status, _, err = run("replay", "alone.png", "--out", "once.png")
    assert "the same bytes as alone.png" in err
    assert run("replay", "o-1.png", "--out", "o-1.png")[0] == 2  # it is read, so it is not written


def test_a_line_of_a_batch_again(run, folder):
    """Lines that share a device batch, and a subject in it: the program of the batch makes them again."""
    lines = [
        f"personalize {' '.join(CAR)} --prompt {thing} --steps 2 --out {thing}.png --no-figure"
        for thing in ("mug", "cat")
    ]
    (folder / "jobs.txt").write_text("\n".join(lines))
    status, _, err = run("batch", "jobs.txt")
    assert status == 0, err
    for name in ("mug.png", "cat.png"):
        assert record_of(folder / name)["program"] == {"images": 2, "references": 1, "merged": True}
        assert run("replay", name, "--out", f"again-{name}")[0] == 0
        assert (folder / f"again-{name}").read_bytes() == (folder / name).read_bytes(), name


def test_what_stands_in_a_picture(run, folder):
    """Hashes that anybody can check, base names, and paths only where they are asked for."""
    words = ["personalize", "--subject", folder / "car.png", "--mask", folder / "car-mask.png", *TWO]
    assert run(*words, "--out", "o.png")[0] == 0
    record = record_of(folder / "o-0.png")
    sha256 = hashlib.sha256((folder / "car.png").read_bytes()).hexdigest()
    size = (folder / "car.png").stat().st_size
    assert record["inputs"]["request.subjects.0.image"] == {"name": "car.png", "sha256": sha256, "bytes": size}
    assert record["request"]["subjects"] == [{"image": "car.png", "mask": "car-mask.png"}]
    assert (record["checkpoint"]["model"], record["device"], record["seed"]) == ("mini", "cpu", 0)
    assert len(json.dumps(record)) < 3000
    assert str(folder).encode() not in (folder / "o-0.png").read_bytes()
    status, out, _ = run("info", "o-0.png", "--json")
    assert (status, json.loads(out)) == (0, record)
    status, out, _ = run("info", "o-0.png")
    assert status == 0
    for said in ("personalize, a car", "with mini", "seed 0", "steps 2", f"car.png (sha256 {sha256[:12]})"):
        assert said in out
    assert run(*words, "--out", "kept.png", "--keep-paths")[0] == 0
    assert record_of(folder / "kept-0.png")["request"]["subjects"][0]["image"] == str(folder / "car.png")
    assert run("replay", "kept-0.png", "--inputs", "/", "--out", "again.png")[0] == 0
    assert "would have no effect" in run("info", "o-0.png", "--model", "mini")[2]


def test_inputs_elsewhere(run, folder, tmp_path_factory):
    """Files are known by their hashes: moved and renamed ones are found, changed ones are named."""
    assert run("personalize", *CAR, *TWO, "--out", "o.png")[0] == 0
    away = tmp_path_factory.mktemp("away")
    (folder / "car.png").rename(away / "renamed.png")
    status, _, err = run("replay", "o-0.png", "--out", "p.png")
    assert (status, err.count("\n")) == (2, 1)
    assert "the input car.png is missing" in err
    assert run("replay", "o-0.png", "--inputs", away, "--inputs", ".", "--out", "p.png")[0] == 0
    assert (folder / "p.png").read_bytes() == (folder / "o-0.png").read_bytes()
    Image.new("RGB", (64, 64), "red").save(folder / "car.png")
    status, _, err = run("replay", "o-0.png", "--out", "q.png")
    assert (status, err.count("\n")) == (2, 1)
    assert "the input car.png has changed" in err
    assert not (folder / "q.png").exists()


def rewritten(file: Path, to: Path, **changes: object) -> None:
    record = record_of(file)
    record |= changes
    save_image(Image.open(file).convert("RGB"), to, record)


def test_what_differs_is_said(run, folder, monkeypatch):
    assert run("generate", *STEPS, "--num-images", 2, "--out", "o.png")[0] == 0
    record = record_of(folder / "o-0.png")
    other = {
        "jaxpa": "0.0.9",
        "jax": "0.9",
        "device": "TPU v5e",
        "checkpoint": {**record["checkpoint"], "sha256": "f" * 64},
    }
    rewritten(folder / "o-0.png", folder / "old.png", **other)
    status, out, err = run("replay", "old.png", "--out", "p.png", "--json")
    assert status == 0
    for said in (
        "by jaxpa 0.0.9, and this is 0.1.0",
        "with jax 0.9",
        "on TPU v5e, and this is cpu",
        "another model: mini ffff",
    ):
        assert sum(said in line for line in err.splitlines()) == 1, said
    assert len(json.loads(out)["differs"]) == 4
    assert (folder / "p.png").read_bytes() == (folder / "o-0.png").read_bytes()  # it says what it is itself made by


def test_another_model_is_named_by_what_it_makes(run, folder):
    """Its picture makes itself again; the same model under another name is the same model."""
    assert run("generate", *STEPS, "--num-images", 2, "--out", "o.png")[0] == 0
    for name in ("copy", "other"):
        shutil.copytree(find_mini(), folder / name)
    settings = json.loads((folder / "other" / "jaxpa.json").read_text())
    (folder / "other" / "jaxpa.json").write_text(json.dumps(settings | {"guidance": settings["guidance"] + 1}))
    assert run("replay", "o-0.png", "--model", "copy", "--out", "same.png")[0] == 0
    assert (folder / "same.png").read_bytes() == (folder / "o-0.png").read_bytes()
    status, _, err = run("replay", "o-0.png", "--model", folder / "other", "--out", "p.png")
    assert (status, err.count("made by another model: mini")) == (0, 1)
    made, was = (record_of(folder / name)["checkpoint"] for name in ("p.png", "o-0.png"))
    assert made["model"] == "other"
    assert made["sha256"] != was["sha256"]
    assert "same bytes as p.png" in run("replay", "p.png", "--out", "q.png")[2]


BAD = {
    "a newer record": ({"format": 2}, "newer jaxpa"),
    "a record of words": ({"format": "1"}, "format"),
    "no such key": ({"promt": 1}, "promt"),
    "a mask of numbers": ({"mask": {"image": 3}}, "mask.image"),
    "a seed of words": ({"seed": "3"}, "seed"),
    "a large seed": ({"seed": 2**40}, "seed must be"),
    "a request of words": ({"request": "x"}, "request"),
    "a setting of words": ({"request": {"sampling": {"steps": "many"}}}, "steps"),
    "too many rows": ({"program": {"images": 10**9}}, "images must be"),
    "no such place": ({"place": 3}, "place must be"),
    "no model": ({"checkpoint": {"sha256": "f"}}, "checkpoint.model"),
    "a model that is not here": ({"checkpoint": {"model": "none", "sha256": "f"}}, "the model none is not here"),
    "a model at a URL": ({"checkpoint": {"model": "http://a/b", "sha256": "f"}}, "give it with --model"),
    "an input without a hash": ({"request": {"embedding": "/etc/passwd"}}, "no hash of request.embed"),
    "an input that is no file": (
        {"request": {"prompt": "x", "image_prompt": "\x1b\0"},
         "inputs": {"request.image_prompt": {"name": "\x1b\0", "sha256": "f", "bytes": 3}}}, "is missing",
    ),
    "long words": ({"seed": "9" * 10**6}, "seed"),
    "escape sequences": ({"seed": "\x1b[31m"}, "seed"),
}  # fmt: skip


def test_what_nobody_vouches_for(run, folder):
    """Foreign, hostile and damaged records: one line each, and nothing is written."""
    assert run("generate", *STEPS, "--num-images", 2, "--out", "o.png")[0] == 0
    for name, (changes, said) in BAD.items():
        rewritten(folder / "o-0.png", folder / "bad.png", **changes)
        status, _, err = run("replay", "bad.png", "--out", "p.png")
        assert (status, err.count("\n")) == (2, 1), (name, err)
        assert said in err, (name, err)
        assert len(err) < 600, name
        assert "\x1b" not in err, name
    edit = {"prompt": "x", "sampling": {"steps": 2}, "following": {"picture": "car.png"}}
    content = (folder / "car.png").read_bytes()
    known = {"name": "car.png", "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    rewritten(
        folder / "o-0.png",
        folder / "bad.png",
        request=edit,
        inputs={"request.following.picture": known},
        checkpoint={"model": "mini", "variant": "kontext", "sha256": "f"},
        program={"images": 2, "merged": True},
    )
    assert "which such pictures do not: try --alone" in run("replay", "bad.png", "--out", "p.png")[2]
    deep = "[" * 10**5 + "]" * 10**5
    for text in ("", "[1", "[]", "7", deep, '{"a": ' + deep + "}", '{"figure": []}', "x" * (5 << 20)):
        info = PngImagePlugin.PngInfo()
        info.add_itxt("jaxpa", text)
        Image.new("RGB", (8, 8)).save(folder / "bad.png", pnginfo=info)
        for command in ("replay", "info"):
            status, _, err = run(command, "bad.png")
            assert (status, err.count("\n")) == (2, 1), (text[:20], err)
    Image.new("RGB", (8, 8)).save(folder / "plain.jpg")
    assert "does not say how it was made" in run("info", "plain.jpg")[2]
    assert "no such file" in run("replay", "none.png")[2]
    assert not (folder / "p.png").exists()


def test_a_request_without_room_is_refused_before_it_is_made(run, folder):
    row = {"prompt": "a car " * 9000, "out": "long.jpg"}
    (folder / "long.jsonl").write_text(json.dumps(row))
    status, _, err = run("batch", "long.jsonl")
    assert status == 2
    assert "write .png or .webp" in err
    for suffix in ("png", "webp"):
        save_image(Image.new("RGB", (8, 8)), f"long.{suffix}", row)
        assert record_of(folder / f"long.{suffix}") == row


def test_every_prompt_of_several_is_in_its_own_picture(run, folder):
    row = {"prompt": ["a car", "a mug"], "steps": 2, "out": "o.png"}
    (folder / "two.jsonl").write_text(json.dumps(row))
    assert run("batch", "two.jsonl")[0] == 0
    assert [record_of(folder / f"o-{k}.png")["request"]["prompt"] for k in (0, 1)] == ["a car", "a mug"]
    assert run("replay", "o-1.png", "--out", "p.png")[0] == 0
    assert record_of(folder / "o-1.png")["program"] == {"images": 2, "merged": True}
    assert (folder / "p.png").read_bytes() == (folder / "o-1.png").read_bytes()


def test_an_inversion_says_no_path(run, folder):
    assert run("invert", "--image", folder / "car.png", *STEPS, "--out", "o.png", "--no-figure")[0] == 0
    assert (record_of(folder / "o.png")["image"], record_of(folder / "o.png")["model"]) == ("car.png", "mini")
    assert "does not say how to make it again" in run("replay", "o.png")[2]
    assert run("mask", "--image", "car.png", "--box", "0,0,1,0.5", "--out", "mask.png", "--no-figure")[0] == 0
    assert "seed would have no effect" in run("replay", "mask.png", "--seed", 3)[2]
    assert "box 0,0,1,0.5" in run("info", "mask.png")[1]


def test_from_an_earlier_picture(run, folder):
    """Its settings, and the flags that are given on top."""
    assert run("personalize", *CAR, *TWO, "--tau", "0.5", "--seed", 3, "--out", "o.png")[0] == 0
    words = ["--from", "o-3.png", "--num-images", 2, "--no-figure", "--out", "same.png"]
    assert run("personalize", *words)[0] == 0
    for seed in (3, 4):
        same, first = (np.asarray(Image.open(f"{name}-{seed}.png")) for name in ("same", "o"))
        np.testing.assert_array_equal(same, first)

    subject = {"image": "car.png", "mask": "car-mask.png", "at": [0.3, 0.5], "flip": True, "caption": "-a car"}
    request = {**record_of(folder / "o-3.png")["request"], "subjects": [subject]}
    rewritten(folder / "o-3.png", folder / "q.png", request=request)

    def asked(verb: str, *words: str) -> dict:
        return to_json(parse_command(JOBS[verb], verb, ["--from", "q.png", *words], verb).request())

    here = {**subject, "image": str(folder / "car.png"), "mask": str(folder / "car-mask.png")}
    settings = {"seed": 3, "steps": 2}
    assert asked("personalize") == {
        "prompt": "a car", "sampling": settings, "method": {"tau": [0.5]}, "subjects": [here],
    }  # fmt: skip
    more = ["--tau=0.9", "--seed", "4", "--prompt", "a mug", "--subject", "b.png", "--word", "x"]
    assert asked("personalize", *more) == {
        "prompt": "a mug", "sampling": {**settings, "seed": 4}, "method": {"tau": [0.9]},
        "subjects": [{"image": "b.png", "word": "x"}],
    }  # fmt: skip
    assert asked("generate", "--variations", "2") == {"prompt": "a car", "sampling": {**settings, "num_images": 2}}
    assert asked("generate", "--embedding", "e.safetensors") == {"embedding": "e.safetensors", "sampling": settings}
    (folder / "car.png").unlink()  # what is missing is missed where it is read
    assert asked("personalize")["subjects"][0]["image"] == "car.png"
    (folder / "lines").mkdir()
    (folder / "lines" / "jobs.txt").write_text("personalize --from ../o-3.png --out ../batch.png")
    assert "car.png: no such file" in run("batch", "lines/jobs.txt")[2]


def test_the_picture_that_is_started_from_is_kept(run, folder):
    """It is read, as any other input."""
    assert run("generate", *STEPS, "--out", "o.png")[0] == 0
    before = (folder / "o.png").read_bytes()
    (folder / "jobs.txt").write_text("generate --from o.png --seed 3 --out ./o.png")
    for words in (["generate", "--from", "o.png", "--out", "o.png", "--force"], ["batch", "jobs.txt"]):
        status, out, err = run(*words)
        assert (status, out, err.count("\n"), "o.png is an input of this command" in err) == (2, "", 1, True), err
        assert (folder / "o.png").read_bytes() == before
    assert run("generate", "--from", "o.png", "--seed", 3, "--out", "p.png")[0] == 0


def test_from_what_cannot_be_started_from(run, folder):
    assert run("mask", "--image", "car.png", "--box", "0,0,1,0.5", "--out", "mask.png", "--no-figure")[0] == 0
    for words, said in (
        (["--from", "car.png"], "does not say how it was made"),
        (["--from", "none.png"], "no such file"),
        (["--from", "mask.png"], "is a mask"),
        (["a cat", "--from", "none.png"], "no such file"),
        (["--from"], "--from takes one picture"),
        (["--from", "a.png", "--from", "b.png"], "--from takes one picture"),
    ):
        status, _, err = run("generate", *words, "--out", "x.png")
        assert (status, err.count("\n")) == (2, 1)
        assert said in err
