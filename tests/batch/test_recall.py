"""What a journal tells of the runs of a file."""

import json
from pathlib import Path

import pytest

from jaxpa.batch.journal import Journal
from jaxpa.batch.recall import FLAGS, RunRecord, runs_in

NOTHING = dict.fromkeys(FLAGS)


def test_places_count_from_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = RunRecord.of(NOTHING | {"out_dir": "work/a", "journal": "j", "model": "m"}, Path("work"))
    assert (asked.out_dir, asked.journal, asked.model) == ("a", "../j", "m")
    assert asked.flags(Path("work")) == NOTHING | {"out_dir": "work/a", "journal": "j", "model": "m"}
    assert asked.flags(Path("/other"))["out_dir"] == "/other/a"
    for place in ("s3://bucket/a", "/other/a"):
        asked = RunRecord.of(NOTHING | {"out_dir": place}, Path("work"))
        assert asked.out_dir == asked.flags(Path("elsewhere"))["out_dir"] == place


def test_the_latest_of_each_first(tmp_path):
    journal = Journal(str(tmp_path / "a.done.jsonl"))
    asked = [
        RunRecord(out_dir="a", at=1.0),
        RunRecord(out_dir="b", at=2.0),
        RunRecord(out_dir="a", batch_size=2, at=3.0),
    ]
    for each in asked:
        journal.append(each.as_entry())
    journal.append({"job": ["a"], "failed": "x"})
    assert runs_in(journal.entries()) == [asked[2], asked[1]]
    assert asked[2].repeats(journal.entries())
    assert not asked[0].repeats(journal.entries())  # of another size
    assert [RunRecord(out_dir="a").fits(each) for each in asked] == [True, False, True]
    assert all(RunRecord(batch_size=4).fits(each) for each in asked)


UNKNOWN = (
    {"format": 2, "at": 9.0},
    {"out_dir": 5},
    {"batch_size": 0},
    {"sed": 1},
    {"at": "x"},
    {"at": 1e300},
    {"at": -1e18},
    [],
    None,
    "x",
)


@pytest.mark.parametrize("run", UNKNOWN, ids=str)
def test_what_is_not_known_is_passed_over(run):
    known = RunRecord(model="m", at=1.0)
    assert runs_in([json.loads(json.dumps({"run": run})), known.as_entry()]) == [known]


def test_in_words():
    assert RunRecord(at=0.0).words.startswith("run of 19")
    assert RunRecord(out_dir="a", batch_size=2).words.endswith(" with --out-dir a --batch-size 2")
