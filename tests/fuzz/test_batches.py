"""Tables, templates and journals that nobody has checked: a JaxpaError, or jobs whose files stay where they belong."""

import contextlib
import json
from pathlib import Path

import pytest
from fuzzing import altered, damaged, fuzz, values
from hypothesis import example, given
from hypothesis import strategies as st

from jaxpa.batch.journal import Journal, read_progress, status, words_of
from jaxpa.batch.names import Template, slug
from jaxpa.cli.command import headers_read_once
from jaxpa.cli.lines import Naming, read_jobs
from jaxpa.errors import JaxpaError

ROW = {"prompt": "a red cat", "seed": 3, "steps": 2, "out": "a.png", "sampling": {"height": 64, "width": 64},
       "checkpoint": {"model": "mini"}, "figure": False}  # fmt: skip
COMMANDS = b'generate --prompt "a red cat" --seed 3 --steps 2 --out a.png\n# nothing\njaxpa generate --prompt b\n'
CSV = b'prompt,seed,out,steps\na red cat,3,a.png,2\n"a, blue one",4,b.png,\n'
WORDS = ["generate", "mask", "jaxpa", "--prompt", "--seed", "--out", "--steps", "--tau", "--subject", "--flip=no",
         "--no-figure", "a cat", "1", "-1", "x.png", "../b.png", "\u2028", "'", '"', "#", "\0"]  # fmt: skip
lines = st.lists(st.sampled_from(WORDS) | st.text(max_size=6), max_size=8).map(" ".join)


@pytest.fixture(scope="module", autouse=True)
def once():
    with headers_read_once():
        yield


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir(exist_ok=True)
    (tmp_path / "out").mkdir(exist_ok=True)
    return tmp_path


def read(folder, name, content, model=None):
    """The jobs of such a file, whose results go to `out`; nothing is written by reading it."""
    file = folder / "in" / name
    file.write_bytes(content)
    try:
        jobs = read_jobs(str(file), Naming(model, "{line}-{seed}-{prompt}.png", str(folder / "out")))
    except JaxpaError:
        return []
    finally:
        assert sorted(each.name for each in folder.rglob("*")) == sorted(["in", "out", name])
        file.unlink()
    files = [file for job in jobs for file in job.files]
    assert len(set(files)) == len(files)
    return jobs


@fuzz
@given(st.lists(altered(ROW) | values, max_size=3), st.sampled_from([None, "mini"]))
@example([{"prompt": "a", "checkpoint": None}], "mini")
@example([{"prompt": "a", "checkpoint": [["model"]]}], "mini")
def test_objects(folder, rows, model):
    read(folder, "jobs.jsonl", "\n".join(map(json.dumps, rows)).encode(), model)


@fuzz
@given(damaged("\n".join(json.dumps(ROW | {"seed": seed, "out": f"{seed}.png"}) for seed in range(3)).encode()))
def test_torn_objects(folder, content):
    read(folder, "jobs.jsonl", content)


@fuzz
@given(damaged(CSV), st.sampled_from(["jobs.csv", "jobs.tsv"]))
def test_tables(folder, content, name):
    read(folder, name, content)


@fuzz
@given(
    damaged(COMMANDS) | st.lists(lines, max_size=3).map(lambda found: "\n".join(found).encode("utf-8", "replace")),
    st.sampled_from([None, "mini"]),
)
def test_commands(folder, content, model):
    read(folder, "jobs.txt", content, model)


@fuzz
@given(st.text(), st.text(max_size=30))
def test_names_stay_in_their_folder(prompt, seed):
    """Whatever a prompt says, it is a part of a name, and no way to another folder."""
    name = slug(prompt)
    assert 0 < len(name) <= 60
    assert Path(name).name == name
    assert name not in (".", "..")
    (made,) = Template("{line:05d}-{prompt}.png").names({"line": 7, "prompt": prompt}, [{"seed": seed}])
    assert Path(made).name == made


@fuzz
@given(
    st.text()
    | st.lists(st.sampled_from(["{", "}", "line", "{line}", ":05d", "!r", ".x", "[0]", "seed", "/"])).map("".join)
)
def test_templates(text):
    with contextlib.suppress(JaxpaError):
        assert len(Template(text).names({"line": 7, "verb": "generate", "prompt": "a"}, [{"seed": 3}])) == 1


@fuzz
@given(data=st.data())
def test_journals(folder, data):
    """What a torn journal still says is believed, and no more: a line counts as made if its whole entry is there."""
    entries = [{"job": {"prompt": str(k)}, "files": [f"{k}.png"], "at": 1.0 + k} for k in range(4)]
    whole = b"".join(json.dumps(each).encode() + b"\n" for each in entries)
    content = data.draw(damaged(whole) | st.just(b"").flatmap(lambda _: altered(entries)).map(
        lambda found: "\n".join(map(json.dumps, found if isinstance(found, list) else [found])).encode()
    ))  # fmt: skip
    file = folder / "jobs.done.jsonl"
    file.write_bytes(content)
    journal = Journal(str(file))
    keys = [(words_of(each["job"]), tuple(each["files"])) for each in entries]
    progress = read_progress(journal.entries(), dict.fromkeys(keys, True))
    assert progress.done <= set(keys)
    intact = set(content.split(b"\n"))
    for key, each in zip(keys, entries, strict=True):
        if json.dumps(each).encode() in intact and b'"failed"' not in content:
            assert key in progress.done
    json.dumps(status({key: key[0] for key in keys}, progress), allow_nan=False)
    journal.append({"job": {"prompt": "new"}, "files": ["new.png"]})
    assert list(journal.entries())[-1]["job"] == {"prompt": "new"}
    file.unlink()
