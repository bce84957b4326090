"""A file of commands: everything is checked first, the networks load once, what is done stays done."""

import errno
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from jaxpa.batch.journal import Journal
from jaxpa.batch.worker import Outcome, Worker
from jaxpa.checkpoint.source import find_mini
from jaxpa.cli.batch import parse_share
from jaxpa.cli.lines import Job, Naming, read_jobs, shared, shares_of
from jaxpa.cli.mask import MaskCommand
from jaxpa.errors import JaxpaError, OutputError
from jaxpa.pipeline import Pipeline


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
    assert [one["files"] for one in made] == [[f"{name}.png"] for name in ("cat", "mask", "car")]  # beside the file
    journal = tmp_path / "jobs.txt.done.jsonl"
    assert [json.loads(line) for line in journal.read_text().splitlines()][1:] == made  # behind the run's flags
    assert all(one["seconds"]["sample"] > 0 for one in made if one["line"] != 4)

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
    """Every machine takes its own lines, with those that read what these make, and knows what the others did."""
    shared = {i: run("batch", jobs, "--share", f"{i}/3", "--json")[1].splitlines() for i in (3, 2, 1)}
    assert {i: [json.loads(line)["line"] for line in lines] for i, lines in shared.items()} == {
        1: [3],
        2: [4, 5],
        3: [],
    }
    assert "0 made, 0 failed, 3 done before" in run("batch", jobs)[2]
    for text in ("0/2", "3/2", "1", "a/b"):
        with pytest.raises(JaxpaError, match="I/N"):
            parse_share(text)


@pytest.mark.parametrize(("flag", "value", "said"), [
    ("--journal", "", "--journal '': no file has such a name"),
    ("--journal", "a\0", "no file has such a name"),
    ("--out-dir", "", "--out-dir '': no file has such a name"),
    ("--journal", "./jobs.txt", "--journal ./jobs.txt is the file of the batch itself"),
])  # fmt: skip
def test_places_that_are_none(run, tmp_path, monkeypatch, flag, value, said):
    monkeypatch.chdir(tmp_path)
    Path("jobs.txt").write_text("generate --prompt 'a red cat'")
    for more in ([], ["--status"]):
        status, _, err = run("batch", "jobs.txt", flag, value, *more)
        assert (status, err.count("\n")) == (2, 1)
        assert said in err
    assert [file.name for file in tmp_path.iterdir()] == ["jobs.txt"]


def test_a_status_is_shown_as_it_is_read(run, tmp_path):
    """What a journal says may hold escape sequences."""
    (tmp_path / "jobs.jsonl").write_text('{"prompt": "a", "out": "a.png"}')
    entry = {"job": {"prompt": "a", "out": "a.png"}, "wanted": ["a.png"], "failed": "\x1b[31mred"}
    (tmp_path / "jobs.jsonl.done.jsonl").write_text(json.dumps(entry))
    assert run("batch", tmp_path / "jobs.jsonl", "--status")[1].endswith(":1: \\x1b[31mred\n")


def test_what_goes_together_to_one_share():
    """Against the definition: parts of the graph of lines and their makers, found by walking through it."""
    makers = {1: (), 2: (), 3: (), 4: (1,), 5: (), 6: (2, 3), 7: (6,), 8: (), 9: (4, 5)}
    jobs = [Job(number, "", None, None, [], [], makers[number]) for number in makers]

    def around(number, seen):
        seen.add(number)
        for other in makers.keys() - seen:
            if other in makers[number] or number in makers[other]:
                around(other, seen)
        return seen

    for count in (1, 2, 4):
        want = [(min(around(number, set())) - 1) % count + 1 for number in makers]
        assert shares_of(jobs, count) == want


def test_a_line_whose_maker_fails(run, jobs, pictures, monkeypatch):
    """It is not to blame: it is left for the next run, which tries it again when what it reads is there. The others'
    batches are as large as if it had been made beside them."""
    caption = "a car" + 80 * " and a car" + " and a mug"  # the word stands beyond the tokens that are read
    car = shlex.quote(str(pictures / "car.png"))
    small = "--prompt 'a car' --steps 1 --height 64 --width 64 --no-figure"
    lines = [
        f"mask --image {car} --no-figure --word mug --caption '{caption}' --out none.png",
        f"mask --image {car} --no-figure --box 0.1,0.2,0.9,0.9 --out mask.png",
        f"personalize --subject {car} --mask none.png {small} --out a.png",
        f"personalize --subject {car} --mask mask.png {small} --out b.png",
    ]
    jobs.write_text("\n".join(lines))
    foreseen = [job.share for job in read_jobs(str(jobs))[2:]]
    asked = []

    def full(self, lines):
        for line, _ in lines:
            asked.append((line.number, [size.images for size in self.size.values()]))
            self.done(Outcome(line, None, OutputError("the disk is full")))

    monkeypatch.setattr(Worker, "run", full)
    status, _, err = run("batch", jobs)
    assert (status, "1 made, 3 failed, 0 done before" in err) == (1, True), err
    assert "0 made, 2 failed, 1 done before, 1 failed before" in run("batch", jobs)[2]
    assert asked == [(4, [2])] * 2
    content = json.loads(run("batch", jobs, "--status", "--json")[1])
    assert (content["made"], content["left"], len(content["failed"])) == (1, 2, 3)
    shutil.copy(jobs.parent / "mask.png", jobs.parent / "none.png")
    assert [shared(job).share for job in read_jobs(str(jobs))[2:]] == foreseen


def test_a_failure_leaves_the_others(run, jobs, tmp_path, pictures):
    """What is found out late: the line is named, the rest is made, and the status tells."""
    lines = jobs.read_text().splitlines()
    caption = "a car" + 80 * " and a car" + " and a mug"  # the word stands beyond the tokens that are read
    words = ["--word", "mug", "--caption", caption, "--prompt", "x", "--out", tmp_path / "x.png"]
    wrong = shlex.join(map(str, ["personalize", "--subject", pictures / "car.png", *words]))
    jobs.write_text("\n".join([wrong, lines[3], lines[2], lines[4]]))
    status, _, err = run("batch", jobs)
    assert status == 1
    assert f"{jobs}:1: " in err
    assert "'mug'" in err
    assert "3 made, 1 failed" in err
    assert (tmp_path / "cat.png").exists()
    assert "3 done before, 1 failed before" in run("batch", jobs)[2]
    status, out, _ = run("batch", jobs, "--status", "--json")
    content = json.loads(out)
    assert (status, content["lines"], content["made"], content["left"]) == (0, 4, 3, 0)
    assert "'mug'" in content["failed"][f"{jobs}:1"]
    assert "0 made, 1 failed" in run("batch", jobs, "--retry-failed")[2]


def test_a_model_for_all(jobs, tmp_path):
    for name in ("mine", "other"):
        (tmp_path / name).symlink_to(find_mini())
    mine, other = str(tmp_path / "mine"), str(tmp_path / "other")
    jobs.write_text(f"generate --prompt x --out a.png\ngenerate --prompt y --out b.png --model={mine}")
    assert [job.command.checkpoint.model for job in read_jobs(str(jobs), Naming(other))] == [other, mine]
    assert [job.command.checkpoint.model for job in read_jobs(str(jobs))] == ["mini", mine]


BAD = {
    "a command": ("paint --prompt x", "'paint' is not a command"),
    "a flag": ("generate --promt x", "there is no flag --promt here: did you mean 'prompt'"),
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
    "what a line before it reads": (
        "mask --image {p}/car.png --box 0,0,1,1\ngenerate --prompt x --out {p}/../pictures/car.png",
        "car.png is read by jobs.txt:1: put this line before it",
    ),
    "nothing": ("# nothing", "holds no command"),
    "a name that no file has": ("generate --prompt x --out 'a\0.png'", "no file has such a name"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_lines_are_all_found_before_anything_is_made(name, run, tmp_path, pictures, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, said = BAD[name]
    (tmp_path / "jobs.txt").write_text(text.format(p=pictures))
    status, out, err = run("batch", "jobs.txt")
    assert (status, out) == (2, "")
    assert said in err
    assert [path.name for path in tmp_path.iterdir()] == ["jobs.txt"]


SMALL = {"height": 64, "width": 64, "steps": 1}


def test_a_table_beside_its_pictures(run, tmp_path, pictures, monkeypatch):
    """Paths count from the file, wherever the command is run; templates name what the rows leave out."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work" / "made").mkdir(parents=True)
    (tmp_path / "work" / "car.png").write_bytes((pictures / "car.png").read_bytes())
    (tmp_path / "work" / "mask.png").write_bytes((pictures / "car-mask.png").read_bytes())
    rows = [
        {"prompt": "a red star", "num_images": 2, "seed": 3, **SMALL},
        {"prompt": "a car", "subjects": [{"image": "car.png", "mask": "mask.png"}], "out": "own.png", **SMALL},
    ]
    file = tmp_path / "work" / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    status, out, err = run("batch", file, "--out", "made/{line:03d}-{seed}.png", "--json")
    assert status == 0, err
    names = [name for line in out.splitlines() for name in json.loads(line)["files"]]
    assert sorted(names) == ["made/001-3.png", "made/001-4.png", "own.png"]
    assert all((file.parent / name).exists() for name in names)
    assert "2 done before" in run("batch", file, "--out", "made/{line:03d}-{seed}.png")[2]
    moved = tmp_path / "elsewhere"
    file.parent.rename(moved)
    assert "2 done before" in run("batch", moved / file.name, "--out", "made/{line:03d}-{seed}.png")[2]
    assert "0 of 2 lines made" in run("batch", moved / file.name, "--out-dir", moved / "made", "--status")[1]


def test_results_at_a_url(run, tmp_path):
    """Pictures and journal go where no folder is; a rerun finds them there."""
    system = fsspec.filesystem("memory")
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "a red star", **SMALL}))
    flags = ["--out", "a/{line}.png", "--out-dir", "memory://made/pictures", "--journal", "memory://made/journal"]
    status, _, err = run("batch", file, *flags)
    assert status == 0, err
    assert system.find("/made/pictures") == ["/made/pictures/a/1.png"]
    assert Image.open(io.BytesIO(system.cat("/made/pictures/a/1.png"))).size == (64, 64)
    assert "1 done before" in run("batch", file, *flags)[2]
    assert "1 of 1 lines made" in run("batch", file, *flags, "--status")[1]
    assert "1 of 1 lines made" in run("batch", file, "--status")[1]  # beside the file it says where the journal is
    (told,) = map(json.loads, (tmp_path / "rows.jsonl.done.jsonl").read_text().splitlines())
    assert told["run"]["journal"] == "memory://made/journal"
    (tmp_path / "rows.jsonl.done.jsonl").unlink()
    assert "1 of 1 lines made" in run("batch", file, "--status", "--journal", "memory://made/journal")[1]


def test_what_lies_at_a_url_is_kept(run, tmp_path, pictures, monkeypatch):
    """As in a folder: what jaxpa made is replaced, and said so; another file needs --force; what comes later stays."""
    system = fsspec.filesystem("memory")
    file, car = tmp_path / "jobs.txt", shlex.quote(str(pictures / "car.png"))
    lines = [f"mask --image {car} --box 0.1,0.2,0.9,0.{k} --out {k}.png" for k in (8, 9)]
    file.write_text("\n".join(lines))
    flags = ["--out-dir", "memory://kept", "--journal", "memory://kept-journal", "--json"]
    system.pipe("/kept/9-figure.png", before := (pictures / "car.png").read_bytes())
    status, out, err = run("batch", file, *flags)
    said = "memory://kept/9-figure.png exists and was not made by jaxpa: name another --out, or replace it with --force"
    assert (status, out, err) == (2, "", f"jaxpa: {file}:2: {said}\n")
    assert system.find("/kept") == ["/kept/9-figure.png"]
    assert system.cat("/kept/9-figure.png") == before
    file.write_text("\n".join([lines[0], f"{lines[1]} --force"]))
    entries = [json.loads(line) for line in run("batch", file, *flags)[1].splitlines()]
    assert [entry["figure"] for entry in entries] == ["memory://kept/8-figure.png", "memory://kept/9-figure.png"]
    assert [entry["replaced"] for entry in entries] == [[], ["memory://kept/9-figure.png"]]
    assert "[1/2] memory://kept/8.png (replaced): " in run("batch", file, *flags[:-1], "--again")[2]

    def appear(*_):
        system.pipe("/kept/8.png", b"another's")

    real = MaskCommand.make
    monkeypatch.setattr(MaskCommand, "make", lambda *a: (real(*a), appear())[0])
    for again in ([], ["--again"]):  # where nothing was, and where a picture of ours was
        if not again:
            system.rm("/kept/8.png")
        else:
            system.pipe("/kept/8.png", system.cat("/kept/9.png"))
        status, _, err = run("batch", file, *flags, *again)
        assert (status, "memory://kept cannot be written: /kept/8.png has come while this ran" in err) == (1, True), err
        assert system.cat("/kept/8.png") == b"another's"


def made(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """Two lines in a folder below the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work").mkdir()
    file = Path("work/rows.jsonl")
    file.write_text("\n".join(json.dumps({"prompt": f"a {name}", **SMALL}) for name in ("star", "cat")))
    return file


def test_a_run_is_known_by_its_file(run, rows, tmp_path, monkeypatch):
    """--status, --retry-failed and --again know the flags of the last run, from wherever they are asked."""
    for name in ("work/a", "b", "elsewhere"):
        (tmp_path / name).mkdir()
    assert run("batch", rows, "--out-dir", "work/a", "--out", "{line}.png", "--batch-size", 2)[0] == 0
    first = made(tmp_path)
    assert first.keys() == {"work/a/1.png", "work/a/2.png"}
    monkeypatch.chdir(tmp_path / "elsewhere")
    file = tmp_path / rows
    status, out, err = run("batch", "--status", file)
    assert (status, out.count("\n"), err) == (0, 1, "")
    assert "with --out {line}.png --out-dir a --batch-size 2: 2 of 2 lines made, 0 failed, 0 left" in out
    assert json.loads(run("batch", "--status", file, "--json")[1])["run"]["out_dir"] == "a"
    (tmp_path / "work" / "a" / "2.png").unlink()
    assert "1 of 2 lines made" in run("batch", "--status", file)[1]
    status, _, err = run("batch", "--retry-failed", file)
    assert (status, "with --out {line}.png --out-dir a" in err, "1 made, 0 failed, 1 done" in err) == (0, True, True)
    assert made(tmp_path) == first
    for each in (tmp_path / "work" / "a").iterdir():
        each.unlink()
    assert "2 made" in run("batch", "--again", file)[2]
    assert made(tmp_path) == first  # of batches of two, as before

    monkeypatch.chdir(tmp_path)  # and another run, whose pictures lie outside of the file's folder
    assert run("batch", rows, "--out-dir", "b")[0] == 0
    latest, before = run("batch", "--status", rows)[1].splitlines()
    assert "with --out-dir ../b: 2 of 2 lines made" in latest
    assert "with --out {line}.png --out-dir a --batch-size 2: 2 of 2 lines made" in before
    assert len(run("batch", "--status", rows, "--out-dir", "b")[1].splitlines()) == 1
    (tmp_path / "work").rename(tmp_path / "moved")
    assert "2 of 2 lines made" in run("batch", "--status", "moved/rows.jsonl", "--out-dir", "b")[1]
    assert "2 done before" in run("batch", "moved/rows.jsonl", "--out-dir", "moved/a", "--out", "{line}.png")[2]


def test_equal_lines_into_a_new_folder(run, rows, tmp_path, monkeypatch):
    """Each is known by its own file; the folder that is named is made, but none around it. The journal is read once."""
    real, reads = Journal.entries, []
    monkeypatch.setattr(Journal, "entries", lambda self: (reads.append(self.place), real(self))[1])
    rows.write_text("\n".join([rows.read_text().splitlines()[0]] * 2))
    status, _, err = run("batch", rows, "--out-dir", "work/a/b")
    assert (status, err.count("\n"), "the folder around it does not exist" in err) == (2, 1, True)
    assert run("batch", rows, "--out-dir", "work/a")[0] == 0
    first = made(tmp_path)
    assert first.keys() == {"work/a/00001.png", "work/a/00002.png"}
    (tmp_path / "work" / "a" / "00001.png").unlink()
    assert "1 of 2 lines made, 0 failed, 1 left" in run("batch", "--status", rows)[1]
    assert reads == [f"{rows}.done.jsonl"] * 2  # of one run, and of a status
    assert "1 made, 0 failed, 1 done before" in run("batch", rows, "--out-dir", "work/a")[2]
    assert made(tmp_path) == first
    entries = [json.loads(line) for line in Path(f"{rows}.done.jsonl").read_text().splitlines()]
    assert ["run" in entry for entry in entries] == [True, False, False, True, False]  # from where its rate counts


def test_faults_that_are_alike_are_not_all_said(run, rows, tmp_path):
    """And a folder that was made for nothing does not stay."""
    lines = [json.dumps({"prompt": "a star", "out": f"none/{k}.png", **SMALL}) for k in range(9)]
    sized = {"prompt": "a star", "batch_size": 2, **SMALL}
    rows.write_text("\n".join([*lines, json.dumps(sized), json.dumps({"prompt": "a star", "sed": 3})]))
    status, out, err = run("batch", rows, "--out-dir", "a")
    assert (status, out, err.count("does not exist"), "\n... and 4 more alike\n" in err) == (2, "", 5, True), err
    assert "rows.jsonl:10: batch_size would have no effect" in err
    assert "jaxpa batch --batch-size" in err
    assert "did you mean 'seed'" in err
    assert err.count("\n") == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["work"]


def test_journals_of_before_runs_told_their_flags(run, rows, tmp_path):
    """No word of a run; names outside of the file's folder count from the working directory."""
    (tmp_path / "b").mkdir()
    assert run("batch", rows, "--out-dir", "b")[0] == 0
    journal = Path(f"{rows}.done.jsonl")
    entries = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [entry["files"] for entry in entries[1:]] == [["../b/00001.png"], ["../b/00002.png"]]
    old = [entry | {"files": [entry["files"][0].removeprefix("../")]} for entry in entries[1:]]
    journal.write_text("".join(f"{json.dumps(entry)}\n" for entry in old))
    assert "2 of 2 lines made" in run("batch", "--status", rows, "--out-dir", "b")[1]
    said = run("batch", "--status", rows, "--out", "{line}.png")[1]
    assert said.startswith(f"{rows}: 0 of 2 lines made, 0 failed, 2 left")
    assert "2 done before" in run("batch", rows, "--out-dir", "b")[2]


def test_a_run_that_cannot_be_read(run, rows, tmp_path):
    """The others are told of."""
    (tmp_path / "model").symlink_to(find_mini())
    for flags in (("--model", "model"), ()):
        assert run("batch", rows, "--out", "{line}.png", *flags)[0] == 0
    (tmp_path / "model").unlink()
    status, out, err = run("batch", "--status", rows)
    assert (status, out.count("\n")) == (1, 1)
    assert "with --out {line}.png: 2 of 2 lines made" in out
    assert "with --model model --out {line}.png: " in err


def test_names_and_numbers_that_cannot_be(run, tmp_path):
    """Nothing is written outside of --out-dir, and no number is read as another one."""
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "a red star", **SMALL}))
    url = ("--out-dir", "memory://made/pictures", "--journal", "memory://made/journal")
    for flags, said in (
        (("--out", "../../{line}.png", *url), "give a name within --out-dir"),
        (("--batch-size", 0), "--batch-size must be a whole number, 1 or more, not 0"),
        (("--actors", 3), "--actors would have no effect: they are those of --engine ray"),
        (("--actors", -3), "--actors must be a whole number, 1 or more, not -3"),
    ):
        status, out, err = run("batch", file, *flags)
        assert (status, out, said in err) == (2, "", True), err
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_the_schema(run):
    status, out, _ = run("batch", "--schema")
    assert status == 0
    assert "prompt" in json.loads(out)["properties"]
    assert "--schema" in run("batch")[2]


def one_line(folder, count=1):
    file = folder / "jobs.txt"
    line = "generate --prompt 'a red star' --height 64 --width 64 --steps 1 --seed {0} --out {0}.png"
    file.write_text("\n".join(line.format(k) for k in range(count)))
    return file


def test_a_folder_called_mini_beside_the_file(run, tmp_path):
    """The embedded checkpoint keeps its name: other models are looked for there, it is not."""
    (tmp_path / "mini").mkdir()
    assert run("batch", one_line(tmp_path))[0] == 0


def test_a_full_disk(run, tmp_path, monkeypatch):
    """What could not be written is made by a plain rerun; nothing stays beside it."""
    file, real, full = one_line(tmp_path, 2), os.fsync, [False, True]  # the run's own entry, and a picture

    def fsync(handle):
        if full and full.pop(0):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    status, _, err = run("batch", file)
    assert (status, "No space left" in err) == (1, True)
    assert "1 made, 1 failed" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.png", "jobs.txt", "jobs.txt.done.jsonl"]
    status, _, err = run("batch", file)
    assert (status, "1 made, 0 failed, 1 done before" in err) == (0, True)


def test_a_full_disk_for_the_journal(run, tmp_path, monkeypatch):
    """The batch ends, since nothing that follows would be remembered."""
    file = one_line(tmp_path, 3)
    monkeypatch.setattr(Journal, "append", lambda *_: (_ for _ in ()).throw(OutputError("the journal is full")))
    status, _, err = run("batch", file, "--batch-size", 1)
    assert (status, "the journal is full" in err) == (2, True)
    assert len(list(tmp_path.glob("*.png"))) < 3
    monkeypatch.undo()
    assert not list(tmp_path.glob("*.lock"))


def test_a_folder_that_vanishes(run, tmp_path, monkeypatch):
    file = one_line(tmp_path, 2)
    (tmp_path / "made").mkdir()
    file.write_text(file.read_text().replace("--out 1.png", "--out made/1.png"))
    real = Pipeline.decode
    monkeypatch.setattr(Pipeline, "decode", lambda *a, **k: (shutil.rmtree(tmp_path / "made", True), real(*a, **k))[1])
    status, _, err = run("batch", file)
    assert (status, "made does not exist" in err, "1 made, 1 failed" in err) == (1, True, True)
    monkeypatch.undo()
    (tmp_path / "made").mkdir()
    assert "1 made, 0 failed, 1 done before" in run("batch", file)[2]


def test_two_processes(run, tmp_path):
    file = one_line(tmp_path)
    with Journal.beside(file).locked():
        status, _, err = run("batch", file)
    assert (status, "another process" in err) == (2, True)
    assert run("batch", file)[0] == 0


def start(file):
    """The batch in a process of its own, and its first line of output has been read: a picture is made."""
    # Where the tests run in a shell's background, interruptions are ignored, by whatever they start as well.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxpa", "batch", str(file), "--batch-size", "1", "--json"], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": "."}, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    signal.signal(signal.SIGINT, before)
    assert process.stdout.readline()
    return process


def test_signals(run, tmp_path):
    """A kill, an end that is asked for, and an interruption: each loses nothing, and a rerun ends in the same bytes.

    examples/measure_batch.py kills 20 times.
    """
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    undisturbed, file = one_line(tmp_path / "a", 30), one_line(tmp_path / "b", 30)
    assert run("batch", undisturbed, "--batch-size", 1)[0] == 0
    said = {}
    for signal_ in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        process = start(file)
        process.send_signal(signal_)
        said[signal_] = process.communicate()[1]
        assert process.returncode == {9: -9, 15: 143, 2: 130}[signal_], said[signal_]
    assert "pictures in flight" in said[signal.SIGTERM]
    assert "stopped," in said[signal.SIGTERM]
    assert run("batch", file, "--batch-size", 1)[0] == 0
    made = {path.name for path in (tmp_path / "b").iterdir()}
    assert made == {f"{k}.png" for k in range(30)} | {"jobs.txt", "jobs.txt.done.jsonl"}
    for k in range(30):
        assert (tmp_path / "b" / f"{k}.png").read_bytes() == (tmp_path / "a" / f"{k}.png").read_bytes()


def test_a_file_that_is_not_there(run, tmp_path):
    status, _, err = run("batch", tmp_path / "none.txt")
    assert (status, err.count("\n")) == (2, 1)
    assert "none.txt" in err


@pytest.mark.parametrize(("flags", "row", "said"), [
    ((), {"image_prompt": "car.png"}, "with --redux"),
    ((), {"image_prompt": "made.png"}, "with --redux"),  # of a line before it
    (("--model", ""), {}, "a model is 'mini', a hub id, a URL, or the name of a folder or a file"),
])  # fmt: skip
def test_what_no_network_reads_is_found_with_the_rows(run, tmp_path, pictures, monkeypatch, flags, row, said):
    """No network is loaded, and no line made. An empty model is not the folder of the file."""
    monkeypatch.setattr("jaxpa.cli.command._load", lambda *_, **__: pytest.fail("it loads"))
    shutil.copy(pictures / "car.png", tmp_path)
    rows = [{"prompt": "a star", "out": "made.png", **SMALL}, {"prompt": "a cat", **row, **SMALL}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows[-1:] if flags else rows)))
    status, out, err = run("batch", tmp_path / "rows.jsonl", *flags)
    assert (status, out, err.count("\n"), said in err) == (2, "", 1, True), err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["car.png", "rows.jsonl"]


@pytest.mark.parametrize(("name", "text"), [
    ("a.jsonl", '{}\n{"seed": 3, "out": "a.png"}\n{"prompt": null}'), ("a.csv", "prompt,seed\n,3\n,4\n,5\n"),
])  # fmt: skip
def test_rows_that_say_nothing_of_their_picture(run, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    status, _, err = run("batch", tmp_path / name)
    assert (status, err.count("give a --prompt: what the picture shows")) == (2, 3), err
    assert [file.name for file in tmp_path.iterdir()] == [name]
