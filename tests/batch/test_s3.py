"""A batch whose pictures and journal are objects of S3, on a local server. Needs the extra s3-test."""

import json
import os

import pytest

from jaxpa.batch import lock
from jaxpa.batch.journal import Journal

s3fs = pytest.importorskip("s3fs", reason="needs the extra s3-test")
server = pytest.importorskip("moto.server", reason="needs the extra s3-test")


@pytest.fixture(scope="module")
def store():
    """An empty bucket `made`."""
    running = server.ThreadedMotoServer(port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    known = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    before = {name: os.environ.get(name) for name in known}
    os.environ.update(known)
    try:
        system = s3fs.S3FileSystem()
        system.mkdir("made")
        yield system
    finally:
        running.stop()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def names(store):
    store.invalidate_cache()
    return set(store.find("made"))


def test_pictures_journal_and_resuming(run, store, tmp_path, monkeypatch):
    file, plain = tmp_path / "rows.jsonl", tmp_path / "plain"
    plain.mkdir()
    small = {"height": 64, "width": 64, "steps": 1}
    file.write_text("\n".join(json.dumps({"prompt": f"a {name}", **small}) for name in ("star", "cat", "car")))
    flags = ["--out", "{line}.png", "--batch-size", 2]
    assert run("batch", file, *flags, "--out-dir", plain)[0] == 0
    here = [*flags, "--out-dir", "s3://made/pictures", "--journal", "s3://made/journal"]
    status, _, err = run("batch", file, *here)
    assert status == 0, err
    assert "[3/3] s3://made/pictures/" in err
    for k in (1, 2, 3):
        assert store.cat_file(f"made/pictures/{k}.png") == (plain / f"{k}.png").read_bytes()
    objects = names(store)
    assert len(objects) == 3 + 4  # pictures; the flags of the run, and an entry for each line; no lock
    assert "3 of 3 lines made" in run("batch", "--status", file, "--out-dir", "s3://made/pictures")[1]

    store.rm_file("made/pictures/2.png")
    assert "1 made, 0 failed, 2 done before" in run("batch", file, *here)[2]
    assert store.cat_file("made/pictures/2.png") == (plain / "2.png").read_bytes()
    assert len(names(store)) == 9  # the run that made it, and its line

    monkeypatch.setattr(lock, "BEAT", 0.2)
    with Journal("s3://made/journal").locked():
        status, _, err = run("batch", file, *here)
        assert (status, "works on this file, and writes s3://made/journal" in err) == (2, True)
    assert len(names(store)) == 9
    assert run("batch", file, *here)[0] == 0


def test_a_bucket_that_is_not_there(run, store, tmp_path):
    """Is not made: its name may be mistyped."""
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a star", "height": 64, "width": 64, "steps": 1}')
    for flags, want in (
        (["--journal", "s3://none/journal"], 2),
        (["--out-dir", "s3://none/pictures", "--journal", tmp_path / "j"], 1),
    ):
        status, out, err = run("batch", file, "--out", "{line}.png", *flags)
        assert (status, out, "Traceback" in err) == (want, "", False)
        assert "s3://none" in err
        assert "cannot be written" in err
        store.invalidate_cache()
        assert not store.exists("none")
