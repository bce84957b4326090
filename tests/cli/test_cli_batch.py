"""A file of commands: everything is checked first, the networks load once, what is done stays done."""

import json
import shlex

import pytest

from jaxpa.checkpoint.source import find_mini
from jaxpa.cli.batch import parse_share, read_jobs
from jaxpa.errors import JaxpaError


@pytest.fixture
def jobs(tmp_path, pictures):
    """Three jobs, of which one needs what another makes."""

    def line(*words: object) -> str:
        return shlex.join(map(str, words))

    car, mask = pictures / "car.png", tmp_path / "mask.png"
    file = tmp_path / "jobs.txt"
    lines = [
        "# three pictures", "",
        line("generate", "--prompt", "a red cat", "--steps", 2, "--out", tmp_path / "cat.png"),
        line("mask", "--image", car, "--box", "0.1,0.2,0.9,0.9", "--no-figure", "--out", mask),
        line("personalize", "--subject", car, "--mask", mask, "--prompt", "a car", "--steps", 2, "--out",
             tmp_path / "car.png", "--no-figure") + "  # of the mask above",
    ]  # fmt: skip
    file.write_text("\n".join(lines))
    return file


def test_what_is_done_stays_done(run, jobs, tmp_path):
    status, out, err = run("batch", jobs, "--json")
    assert status == 0, err
    made = [json.loads(line) for line in out.splitlines()]
    assert [one["files"] for one in made] == [[str(tmp_path / f"{name}.png")] for name in ("cat", "mask", "car")]
    journal = tmp_path / "jobs.txt.done.jsonl"
    assert [json.loads(line) for line in journal.read_text().splitlines()] == made
    assert made[2]["seconds"]["load"] < 0.05 < made[0]["seconds"]["sample"]  # the networks were there

    cat = (tmp_path / "cat.png").read_bytes()
    (tmp_path / "car.png").unlink()
    journal.write_text(journal.read_text() + '{"job": ["gen\n')  # a crash while it was written
    status, out, err = run("batch", jobs, "--json")
    assert (status, len(out.splitlines())) == (0, 1)  # the missing one alone
    assert "1 made, 0 failed, 2 done before" in err
    assert "0 made" in run("batch", jobs)[2]
    status, out, _ = run("batch", jobs, "--again", "--json")
    assert (status, len(out.splitlines())) == (0, 3)
    assert (tmp_path / "cat.png").read_bytes() == cat


def test_shares(run, jobs, tmp_path):
    """Every machine takes its own lines, and knows what the others did."""
    shared = {i: run("batch", jobs, "--share", f"{i}/3", "--json")[1].splitlines() for i in (1, 2, 3)}
    assert [len(lines) for lines in shared.values()] == [1, 1, 1]
    assert len(list(tmp_path.glob("jobs.txt.*of3.done.jsonl"))) == 3
    assert "0 made, 0 failed, 3 done before" in run("batch", jobs)[2]
    for text in ("0/2", "3/2", "1", "a/b"):
        with pytest.raises(JaxpaError, match="I/N"):
            parse_share(text)


def test_a_failure_leaves_the_others(run, jobs, tmp_path, pictures):
    """What is found out late: the line is named, the rest is made, and the status tells."""
    lines = jobs.read_text().splitlines()
    words = ["--word", "mug", "--caption", "a car", "--prompt", "x", "--out", tmp_path / "x.png"]
    wrong = shlex.join(map(str, ["personalize", "--subject", pictures / "car.png", *words]))
    jobs.write_text("\n".join([wrong, lines[3], lines[2], lines[4]]))
    status, _, err = run("batch", jobs)
    assert status == 1
    assert f"{jobs}:1: " in err
    assert "'mug'" in err
    assert "3 made, 1 failed" in err
    assert (tmp_path / "cat.png").exists()


def test_a_model_for_all(jobs, tmp_path):
    for name in ("mine", "other"):
        (tmp_path / name).symlink_to(find_mini())
    mine, other = str(tmp_path / "mine"), str(tmp_path / "other")
    jobs.write_text(f"generate --prompt x --out a.png\ngenerate --prompt y --out b.png --model={mine}")
    assert [job.command.checkpoint.model for job in read_jobs(jobs, other)] == [other, mine]
    assert [job.command.checkpoint.model for job in read_jobs(jobs)] == ["mini", mine]


BAD = {
    "a command": ("paint --prompt x", "'paint' is not a command"),
    "a flag": ("generate --promt x", "not the flags of generate"),
    "a quote": ('generate --prompt "x', "No closing quotation"),
    "a picture": ("invert --image none.png --prompt x --out x.png", "none.png"),
    "a value": ("generate --prompt x --steps 0 --out x.png", "steps must be"),
    "a place": ("personalize --subject {p}/car.png --mask {p}/car-mask.png --at 3,3 --prompt x", "off the canvas"),
    "boxes for a layout": (
        "personalize --subject {p}/car.png --mask {p}/car-mask.png --place 0,0,1,1 --place 0.5,0.5 --prompt x",
        "several places",
    ),
    "a prompt without effect": ("generate --prompt x --negative-prompt y", "embeds its guidance"),
    "the same file by another name": (
        "generate --prompt x --out a.png\ngenerate --prompt y --out ./b/../a.png",
        "jobs.txt:1 already",
    ),
    "a picture of several": (
        "generate --prompt x --num-images 2 --out a.png\ngenerate --prompt y --out a-1.png",
        "jobs.txt:1 already",
    ),
    "the same file": ("generate --prompt x\ngenerate --prompt y", "jobs.txt:1 already"),
    "nothing": ("# nothing", "holds no command"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_lines_are_all_found_before_anything_is_made(name, run, tmp_path, pictures, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, said = BAD[name]
    (tmp_path / "jobs.txt").write_text(text.format(p=pictures))
    status, out, err = run("batch", tmp_path / "jobs.txt")
    assert (status, out) == (2, "")
    assert said in err
    assert [path.name for path in tmp_path.iterdir()] == ["jobs.txt"]


def test_a_file_that_is_not_there(run, tmp_path):
    status, _, err = run("batch", tmp_path / "none.txt")
    assert (status, err.count("\n")) == (2, 1)
    assert "none.txt" in err
