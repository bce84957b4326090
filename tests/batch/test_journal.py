"""The journal: what it survives, who may write it, and what it says of a file."""

import json
import os

import fsspec
import pytest

from jaxpa.batch.journal import Journal, key_of, read_progress, status
from jaxpa.errors import JaxpaError, OutputError

MADE, FAILED = {"job": ["a"], "files": ["a.png"]}, {"job": ["b"], "failed": "no such file", "again": False}


@pytest.mark.parametrize("junk", [b'{"job": ["gen', b"5\n", b"{}\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n", b"\n\n"])
def test_what_is_torn_is_passed_over(tmp_path, junk):
    """And the next entry stands on a line of its own."""
    journal = Journal(str(tmp_path / "a.done.jsonl"))
    journal.append(MADE)
    with open(journal.place, "ab") as file:
        file.write(junk)
    journal.append(FAILED)
    assert list(journal.entries()) == [MADE, FAILED]


def test_every_cut_leaves_whole_entries(tmp_path):
    journal = Journal(str(tmp_path / "a.done.jsonl"))
    for entry in (MADE, FAILED):
        journal.append(entry)
    text = (tmp_path / "a.done.jsonl").read_bytes()
    for length in range(len(text)):
        (tmp_path / "a.done.jsonl").write_bytes(text[:length])
        journal.append(MADE)
        found = list(journal.entries())
        assert found[-1] == MADE
        assert all(entry in (MADE, FAILED) for entry in found)


def test_one_process_at_a_time(tmp_path):
    journal = Journal(str(tmp_path / "a.done.jsonl"))
    with journal.locked(), pytest.raises(JaxpaError, match="another process"), Journal(journal.place).locked():
        pass
    assert list(tmp_path.iterdir()) == []
    with journal.locked():
        pass


def test_a_journal_that_cannot_be_written(tmp_path):
    journal = Journal(str(tmp_path / "gone" / "a.done.jsonl"))
    with pytest.raises(OutputError, match="cannot be written"):
        journal.append(MADE)
    with pytest.raises(JaxpaError, match="--journal"), journal.locked():
        pass


def test_objects_at_a_url():
    system = fsspec.filesystem("memory")
    journal = Journal("memory://batch/journal")
    assert list(journal.entries()) == []
    journal.append(MADE)
    journal.append(FAILED)
    assert list(journal.entries()) == [MADE, FAILED]
    assert len(system.find("/batch/journal")) == 2
    with pytest.raises(JaxpaError, match="nothing://a"):
        list(Journal("nothing://a").entries())


def test_the_last_word_counts():
    key = key_of(["a"])
    failed = {"job": ["a"], "failed": "full", "again": True}
    expected = {key: ["a.png"]}
    assert read_progress([MADE], expected).done == {key}
    assert read_progress([MADE], {}).done == set()  # its picture is gone
    assert read_progress([MADE], {key: ["b.png"]}).done == set()  # another is asked for now
    assert read_progress([failed, MADE], expected).failed == {}
    progress = read_progress([MADE, failed], expected)
    assert (progress.done, progress.failed, progress.again) == (set(), {key: "full"}, {key})


def test_status():
    entries = [{"job": [str(k)], "files": ["x", "y"], "at": 100.0 + 30 * k} for k in range(3)]
    entries.append({"job": ["9"], "failed": "no such file", "again": False, "at": 190.0})
    keys = {key_of([str(k)]): f"jobs.txt:{k}" for k in range(10)}
    progress = read_progress(entries, {key: ["x", "y"] for key in keys})
    assert status(keys, progress, entries) == {
        "lines": 10, "made": 3, "failed": {"jobs.txt:9": "no such file"}, "left": 6,
        "pictures_per_minute": round(60 * 4 / 90, 1), "seconds_left": 180,
    }  # fmt: skip
    assert json.dumps(status(keys, read_progress([], {}), []))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_closed_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError):
        Journal(str(tmp_path / "a.done.jsonl")).append(MADE)
