"""The journal: what it survives, who may write it, and what it says of a file."""

import json
import os

import fsspec
import pytest

from jaxpa.batch.journal import Journal, read_progress, status, words_of
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


def test_a_journal_that_is_no_file(tmp_path):
    """It is refused: a pipe would be waited for, and a device read without end."""
    os.mkfifo(tmp_path / "a.done.jsonl")
    os.symlink("/dev/zero", tmp_path / "b.done.jsonl")
    for name, kind in {"a": "named pipe", "b": "device"}.items():
        with pytest.raises(JaxpaError, match=rf"{name}\.done\.jsonl cannot be read: this is a {kind}"):
            list(Journal(str(tmp_path / f"{name}.done.jsonl")).entries())


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


def key(name, *files):
    return words_of([name]), files


@pytest.mark.parametrize("wanted", [{}, {"wanted": ["a.png"]}])  # journals of before failures named their files
def test_the_last_word_counts(wanted):
    a, failed = key("a", "a.png"), {"job": ["a"], "failed": "full", "again": True, **wanted}
    assert read_progress([MADE], {a: True}).done == {a}
    assert read_progress([MADE], {a: False}).done == set()  # its picture is gone
    assert read_progress([MADE], {key("a", "b.png"): True}).done == set()  # another is asked for now
    assert read_progress([failed, MADE], {a: True}).failed == {}
    progress = read_progress([MADE, failed], {a: True})
    assert (progress.done, progress.failed, progress.again) == (set(), {a: "full"}, {a})


def test_the_last_word_counts_whichever_journal_it_is_in():
    """A share of a retry has a journal of its own, which may be read before that of the first run."""
    a, failed = key("a", "a.png"), {"job": ["a"], "failed": "full", "at": 1.0}
    progress = read_progress([MADE | {"at": 2.0}, failed], {a: True})
    assert (progress.done, progress.failed) == ({a}, {})


def test_lines_that_say_the_same_are_told_apart_by_their_files():
    first, second = key("a", "1.png"), key("a", "2.png")
    made, failed = {"job": ["a"], "files": ["2.png"]}, {"job": ["a"], "failed": "no such file", "wanted": ["1.png"]}
    progress = read_progress([made], {first: False, second: True})
    assert (progress.done, progress.failed) == ({second}, {})
    progress = read_progress([failed, made], {first: False, second: True})
    assert (progress.done, progress.failed) == ({second}, {first: "no such file"})
    found = status({first: "f:1", second: "f:2"}, progress)
    assert [found[name] for name in ("lines", "made", "left", "failed")] == [2, 1, 0, {"f:1": "no such file"}]
    old = {"job": ["a"], "failed": "no such file"}  # as nobody knows which
    assert read_progress([old], {first: False, second: True}).failed.keys() == {first, second}


def test_status():
    entries = [{"job": [str(k)], "files": ["x", "y"], "at": 100.0 + 30 * k} for k in range(3)]
    entries.append({"job": ["9"], "failed": "no such file", "again": False, "at": 190.0})
    keys = {key(str(k), "x", "y"): f"jobs.txt:{k}" for k in range(10)}
    progress = read_progress(entries, dict.fromkeys(keys, True))
    assert status(keys, progress) == {
        "lines": 10, "made": 3, "failed": {"jobs.txt:9": "no such file"}, "left": 6,
        "pictures_per_minute": round(60 * 4 / 90, 1), "seconds_left": 180,
    }  # fmt: skip
    assert json.dumps(status(keys, read_progress([], {})))


def test_a_pause_is_no_work():
    """Ten lines last night, one every six seconds; ten this morning, one every three; and another file's in between."""
    night = [{"job": [str(k)], "files": ["x"], "at": 1000.0 + 6 * k} for k in range(10)]
    morning = [{"job": [str(10 + k)], "files": ["x"], "at": 50_000.0 + 3 * k} for k in range(10)]
    others = [{"job": [str(k)], "files": ["another.png"], "at": 50_001.0 + k} for k in range(20)]
    keys = {key(str(k), "x"): f"jobs.txt:{k}" for k in range(40)}
    progress = read_progress([*night, *others, *morning], dict.fromkeys(keys, True))
    found = status(keys, progress, since=49_990.0)
    assert (found["made"], found["pictures_per_minute"], found["seconds_left"]) == (20, 20.0, 60)
    assert status(keys, progress, since=50_027.0)["pictures_per_minute"] is None  # as of one entry nothing is known


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_closed_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError):
        Journal(str(tmp_path / "a.done.jsonl")).append(MADE)
