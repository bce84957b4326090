"""The commands as a user types them: files, JSON, and one line for everything that is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxpa.cli.flags import group_subjects, parse_subject
from jaxpa.errors import JaxpaError
from jaxpa.media.images import read_metadata


def test_generate(run, tmp_path):
    out = tmp_path / "star.png"
    status, line, _ = run("generate", "--prompt", "a red star", "--steps", 2, "--num-images", 2, "--out", out, "--json")
    assert status == 0
    content = json.loads(line)
    assert content["files"] == [str(tmp_path / "star-0.png"), str(tmp_path / "star-1.png")]
    assert read_metadata(content["files"][1])["seed"] == 1
    assert {"compile_seconds", "seconds", "programs"} <= content.keys()


def test_personalize_a_photograph(run, tmp_path, pictures):
    out = tmp_path / "cat.webp"
    status, _, err = run(
        "personalize", "--subject", pictures / "chelsea.jpg", "--mask", pictures / "chelsea-mask.png",
        "--at", "0.4,0.5", "--flip", "--prompt", "a cat on a beach", "--steps", 2, "--tau", "80%", "--out", out,
    )  # fmt: skip
    assert status == 0, err
    assert Image.open(out).size == (96, 96)
    assert (tmp_path / "cat-figure.png").exists()
    assert "compiling" in err


def test_sweeps_are_named(run, tmp_path, pictures):
    argv = ["--subject", pictures / "car.png", "--mask", pictures / "car-mask.png", "--prompt", "a car", "--steps", 2]
    argv += ["--tau", "0.9", "50%", "--place", "0.3,0.5", "--place", "0.4,0.7", "--out", tmp_path / "x.png"]
    status, line, err = run("personalize", *argv, "--no-figure", "--json")
    assert status == 0, err
    names = ["x-tau0.9-place1.png", "x-tau0.9-place2.png", "x-tau50%-place1.png", "x-tau50%-place2.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    # Two images. Above 0.9 lies one step of two, above 50% too, each with a row more; the inversion takes two.
    assert json.loads(line)["sample_forwards"] == 2 * (2 * 2 + 1) + 2


def test_edits(run, tmp_path, pictures):
    car = ["--image", pictures / "car.png", "--prompt", "a car", "--steps", 2]
    rest = {"inpaint": ["--mask", pictures / "car-mask.png", "--grow", 8], "outpaint": ["--pad", "0,100,0,0"]}
    for name in ("inpaint", "outpaint", "invert"):
        status, line, err = run(name, *car, *rest.get(name, []), "--out", tmp_path / f"{name}.png", "--json")
        assert status == 0, err
        assert json.loads(line)["files"] == [str(tmp_path / f"{name}.png")]
        assert (tmp_path / f"{name}-figure.png").exists()
    status, _, err = run("outpaint", *car, "--pad", "1,2", "--out", tmp_path / "x.png")
    assert (status, err.count("\n")) == (2, 1)


def test_plan_and_bench(run):
    status, line, _ = run("plan", "--json", "--preset", "official", "--num-images", 2)
    content = json.loads(line)
    assert status == 0
    assert content["sample_forwards"] == 28 * 2 + content["steps_above_tau"][0]
    assert run("bench", "--steps", 1, "--repeats", 1)[0] == 0


def test_the_grammar_of_subjects():
    argv = ["--subject", "a.png", "--mask", "m.png", "--at", "0.1,0.2", "--flip", "--subject=b.png", "--tau", "0.5"]
    assert group_subjects("personalize", argv) == [
        "--subject", "a.png", "mask=m.png", "at=0.1,0.2", "flip=", "--subject", "b.png", "--tau", "0.5"
    ]  # fmt: skip
    assert group_subjects("inpaint", ["--mask", "m.png"]) == ["--mask", "m.png"]
    for words in (["--at", "0.1,0.2", "--subject", "a.png"], ["--subject", "a.png", "--tau", "0.5", "--at", "0.1,0.2"]):
        with pytest.raises(JaxpaError, match="--at belongs directly after its --subject IMAGE"):
            group_subjects("personalize", words)
    assert parse_subject(["a.png", "stretch="]).stretch
    assert not parse_subject(["a.png", "flip="]).stretch
    subject = parse_subject(["a.png", "mask=m.png", "at=0.1,0.2,0.5,0.6", "flip="])
    assert (subject.image, subject.mask, subject.at, subject.flip) == ("a.png", "m.png", (0.1, 0.2, 0.5, 0.6), True)


@pytest.fixture(scope="module")
def bad(tmp_path_factory, pictures):
    """A folder of files that are wrong."""
    folder = tmp_path_factory.mktemp("bad")
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(folder / "empty.png")
    Image.fromarray(np.full((40, 10), 255, np.uint8)).save(folder / "tall.png")
    (folder / "broken.png").write_bytes((pictures / "car.png").read_bytes()[:500])
    (folder / "text.png").write_text("no picture")
    return folder


CAR = ["--subject", "{p}/car.png", "--mask", "{p}/car-mask.png"]
BAD = {
    "missing picture": ([*CAR[:1], "{b}/none.png", *CAR[2:]], "none.png"),
    "unreadable picture": (["--subject", "{b}/text.png", *CAR[2:]], "text.png"),
    "truncated picture": (["--subject", "{b}/broken.png", *CAR[2:]], "broken.png"),
    "no mask": (CAR[:2], "has no mask"),
    "empty mask": ([*CAR[:2], "--mask", "{b}/empty.png"], "empty"),
    "another aspect": ([*CAR[:2], "--mask", "{b}/tall.png"], "10 x 40"),
    "off the canvas": ([*CAR, "--at", "3,3"], "off the canvas"),
    "a box off the canvas": ([*CAR, "--at", "2,2,3,3"], "off the canvas"),
    "an empty box": ([*CAR, "--at", "0.5,0.5,0.2,0.9"], "is empty"),
    "boxes for a layout": ([*CAR, "--place", "0.5,0.5", "--place", "0,0,1,1"], "several places"),
    "no place": ([*CAR, "--at", "left"], "--at 'left'"),
    "tau": ([*CAR, "--tau", "1.5"], "tau '1.5'"),
    "tau in per cent": ([*CAR, "--tau", "120%"], "tau '120%'"),
    "no steps": ([*CAR, "--steps", "0"], "steps must be"),
    "a size": ([*CAR, "--height", "103"], "nearest valid size is 96 x 104"),
    "no images": ([*CAR, "--num-images", "0"], "num_images must be"),
    "a model": ([*CAR, "--model", "maxi"], "maxi"),
    "output folder": ([*CAR, "--out", "{b}/none/x.png"], "none"),
    "output format": ([*CAR, "--out", "{b}/x.gif"], ".gif"),
    "gamma": ([*CAR, "--gamma", "2"], "gamma must lie"),
    "eta": ([*CAR, "--eta", "-1"], "eta"),
    "a tau twice": ([*CAR, "--tau", "0.5", "50%", "0.5"], "asked for twice (tau0.5)"),
    "a tau twice alone": ([*CAR, "--tau", "0.5", "0.5"], "asked for twice"),
    "a flag of several values twice": ([*CAR, "--tau", "0.5", "--tau", "0.6"], "--tau is given twice"),
    "a flag twice": ([*CAR, "--steps", "2", "--steps", "0"], "steps must be"),  # the last one counts
    "a stretch into no box": ([*CAR, "--at", "0.5,0.5", "--stretch"], "stretch would have no effect"),
    "no effect": ([*CAR, "--gamma", "0.5"], "gamma would have no effect"),
    "no negative prompt here": ([*CAR, "--negative-prompt", "snow"], "embeds its guidance"),
    "a misspelt solver": ([*CAR, "--solver", "Heun"], "did you mean 'heun'"),
    "sweeps of another solver": (
        [*CAR, "--solver", "ab2", "--path", "ode", "--sweeps", "2"],
        "sweeps would have no effect",
    ),
    "neither yes nor no": ([*CAR, "--soft", "maybe"], "'maybe' is not one of yes, no"),
    "one block": ([*CAR, "--blocks", "3"], "no range of blocks"),
    "a tau of no blocks": ([*CAR, "--tau-blocks", "0.5"], "--tau-blocks '0.5' is no tau of blocks"),
    "a tau of blocks beyond": ([*CAR, "--tau-blocks", "4-6=0.5"], "tau_blocks must lie in 0 to 5 here, not 4-6"),
    "blocks that do not exist": ([*CAR, "--blocks", "0-99"], "blocks must lie in 0 to 5 here, not 0-99"),
    "parts of whole tokens": ([*CAR, "--level", "token", "--parts", "v"], "belong to level"),
    "a misspelt level": ([*CAR, "--level", "Layer"], "'layer'"),
    "a flag out of its place": (["--at", "0.1,0.2", *CAR], "--at belongs directly after its --subject IMAGE"),
    "a subject without a picture": ([*CAR, "--subject"], "--subject needs a picture"),
    "a mask and a word": ([*CAR, "--word", "car"], "give one of them"),
    "not a number": ([*CAR, "--at", "nan,0.2"], "--at 'nan,0.2'"),
    "an unknown place": ([*CAR, "--place", "0.5"], "--place '0.5'"),
    "a seed": ([*CAR, "--seed", "-3"], "seed"),
    "no subject": ([], "nothing to personalise"),
    "a count in words": ([*CAR, "--num-images", "abc"], "--num-images 'abc' is not a whole number"),
    "a count in halves": ([*CAR, "--steps=1.5"], "--steps '1.5' is not a whole number"),
    "a size in words": ([*CAR, "--height", "tall"], "--height 'tall' is not a whole number"),
    "a number in words": ([*CAR, "--guidance", "strong"], "--guidance 'strong' is not a number"),
    "no finite number": ([*CAR, "--gamma", "nan"], "--gamma 'nan' is not a number"),
    "seeds in words": ([*CAR, "--seed", "1", "two"], "--seed '1 two': give whole numbers"),
    "no such choice": ([*CAR, "--dtype", "float23"], "--dtype 'float23' is not one of auto, float32, bfloat16"),
    "a flag without its value": ([*CAR, "--num-images"], "--num-images needs a value"),
    "a misspelt flag": ([*CAR, "--num-image", "2"], "no flag --num-image here: did you mean 'num-images'"),
    "a word that the caption lacks": (
        ["--subject", "{p}/car.png", "--word", "mug", "--caption", "a car in the snow"],
        "the word 'mug' is not in 'a car in the snow'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name, bad, pictures, run, tmp_path):
    words, said = BAD[name]
    argv = [word.format(b=bad, p=pictures) for word in words]
    before = sorted(bad.iterdir())
    out = [] if "--out" in argv else ["--out", tmp_path / "x.png"]
    status, line, err = run("personalize", "--prompt", "a car", *out, *argv)
    assert status == 2
    assert said in err
    assert err.count("\n") == 1 or name == "a model", err
    assert line == ""
    assert not list(tmp_path.iterdir())
    assert sorted(bad.iterdir()) == before


@pytest.mark.parametrize(("words", "said"), [
    (["invert", "--image", "x.png"], "--prompt must be given"),
    (["bench", "--batch", "many"], "--batch 'many' is not a whole number"),
    (["mask", "--image", "x.png", "--threshold", "low"], "--threshold 'low' is not a number"),
    (["plan", "--config", "pro"], "--config 'pro' is not one of dev, schnell"),
    (["outpaint", "--image", "x.png", "--prompt", "a car", "--pad", "1,2"], "--pad '1,2': give TOP,RIGHT,BOTTOM,LEFT"),
    (["generat"], "there is no command 'generat': did you mean 'generate'"),
    (["generate", "a red car"], "the word 'a red car' belongs to no flag: give every value after its flag, in quotes"),
    (["generate", "--prompt", "a", "red", "car"], "the word 'red' belongs to no flag"),
    (["generate", "--prompt", "a car", "--force", "x.png"], "the word 'x.png' belongs to no flag"),
    (["replay", "--seed", "3"], "PICTURE must be given"),
    (["replay", "a.png", "b.png"], "the word 'b.png' belongs to no flag"),
    (["plan", "--config", "dev", "--keep-lora", "yes"], "--keep-lora would have no effect: --config reads no files"),
    (["plan", "--config", "dev", "--redux", "x"], "--redux would have no effect: --config reads no files"),
    (["plan", "--config", "dev", "--lora", "a.safetensors"], "--lora would have no effect"),
    (["bench", "--config", "dev", "--variant", "fill"], "--variant would have no effect: the numbers of --config"),
    (["bench", "--config", "dev", "--components", "x"], "--components would have no effect"),
    (["bench", "--config", "dev", "--double", "20"], "--double must be a whole number, 0 to 19, not 20"),
    (["bench", "--config", "schnell", "--single", "-1"], "--single must be a whole number, 0 to 38, not -1"),
    (["generate", "--prompt", "x", "--lora", "a.safetensors", "b.safetensors"], "--lora takes one value, and 'b."),
    (["personalize", "--prompt", "x", "--place", "0.1,0.2", "0,1"], "--place takes one value, and '0,1' is another"),
    (["replay", "a.png", "--inputs", "a", "b"], "--inputs takes one value, and 'b' is another: repeat the flag"),
    (["replay", "--inputs", "a", "none.png"], "none.png: no such file"),  # its picture
    (["replay", "-a.png"], "PICTURE '-a.png' would be taken for a flag: write ./-a.png"),
    (["batch", "-a.txt"], "FILE '-a.txt' would be taken for a flag: write ./-a.txt"),
    (["personalize", "--prompt", "x", "--subject", "-a.png", "--flip"], "--subject -a.png would be taken for a flag"),
    (["generate", "--prompt", "-a", "--steps", "0"], "steps must be a whole number, 1 to 1000, not 0"),
    (["inpaint", "--prompt", "a car", "--mask", "m", "--image", "-a.png", "--out", "-b.png"], "-a.png: no such file"),
    (["generate", "--prompt", "-a", "-b"], "the word '-b' belongs to no flag"),
    (["completion", "tcsh"], "SHELL 'tcsh' is not one of bash, zsh, fish"),
    (["mask", "--image", "\x1b[2J.png"], "\\x1b[2J.png"),
])  # fmt: skip
def test_every_command_says_it_in_one_line(words, said, run):
    status, out, err = run(*words)
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("jaxpa: ")
    assert said in err
    assert "\x1b" not in err


def test_a_word_is_looked_for_in_the_caption_before_anything_loads(run, monkeypatch, pictures):
    monkeypatch.setattr("jaxpa.pipeline.load", lambda *_, **__: pytest.fail("it loads"))
    status, _, err = run("mask", "--image", pictures / "car.png", "--word", "mug", "--caption", "a car")
    assert (status, err) == (2, "jaxpa: the word 'mug' is not in 'a car'\n")


@pytest.mark.parametrize("words", [["invert", "--prompt", "a car"], ["mask", "--word", "car"]])
def test_memory_is_asked_for_before_anything_loads(words, run, monkeypatch, pictures, tmp_path):
    """A machine of 8 MiB holds neither."""
    monkeypatch.setattr("jaxpa.devices.memory.machine_bytes", lambda: 8 * 2**20)
    monkeypatch.setattr("jaxpa.pipeline.load", lambda *_, **__: pytest.fail("it loads"))
    status, _, err = run(*words, "--image", pictures / "car.png", "--out", tmp_path / "x.png")
    assert (status, err.count("\n")) == (2, 1), err
    assert "GiB of memory, and this machine has 0.0 GiB" in err


def test_info_and_convert(run, tmp_path):
    status, out, _ = run("convert", "mini", tmp_path / "mine", "--json")
    assert (status, json.loads(out)) == (0, {"folder": str(tmp_path / "mine")})
    status, out, _ = run("info", tmp_path / "mine", "--json")
    assert status == 0
    assert json.loads(out)["layout"] == "jaxpa"
    next((tmp_path / "mine" / "vae").glob("*.safetensors")).write_bytes(b"")
    assert run("info", tmp_path / "mine")[0] == 1


def test_a_generation_without_torch(tmp_path, pictures):
    """In a process where torch cannot be imported, from the command to the file."""
    code = (
        "import sys; from importlib.machinery import PathFinder; find = PathFinder.find_spec\n"
        "hide = lambda name, *rest: None if name.partition('.')[0] == 'torch' else find(name, *rest)\n"
        "PathFinder.find_spec = staticmethod(hide)\n"
        "from jaxpa.cli.main import main; status = main(sys.argv[1:])\n"
        "sys.exit(status or int('torch' in sys.modules))"
    )
    argv = ["personalize", "--subject", pictures / "car.png", "--mask", pictures / "car-mask.png",
            "--prompt", "a " + 40 * "very " + "red car", "--steps", "1", "--out", tmp_path / "car.png"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, argv)], capture_output=True, text=True, cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": "."},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "car.png").exists()
    assert "warning: prompt" in done.stderr
    assert "is longer than" in done.stderr
    assert "Traceback" not in done.stderr
