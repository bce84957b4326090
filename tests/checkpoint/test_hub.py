"""A hub that misbehaves: a server of one's own, asked by huggingface_hub's own client."""

import http.server
import threading
import time

import pytest

from jaxpa.checkpoint import hub
from jaxpa.errors import CheckpointError


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """serve(status, body) starts answering so; status None: never."""
    from huggingface_hub import constants

    stop, answer = threading.Event(), {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if answer["status"] is None:
                stop.wait(30)
                return
            self.send_response(answer["status"])
            self.send_header("content-length", str(len(answer["body"])))
            self.end_headers()
            self.wfile.write(answer["body"])

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "PATIENCE", 1)
    yield lambda status, body=b"": answer.update(status=status, body=body)
    stop.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (403, b"", "HTTP status 403"),
        (429, b"", "HTTP status 429"),
        (500, b"", "HTTP status 500"),
        (503, b"", "HTTP status 503"),
        (200, b"<html>sign in</html>", "could not be fetched: its reply is not the hub's"),
        (200, b'{"id": "owner/name"}', "could not be fetched: its reply names no commit"),
        (200, b'{"id": "owner/name", "sha": "../../elsewhere"}', "could not be fetched: its reply names no commit"),
        (None, b"", "does not answer within 1 seconds"),
    ],
)
def test_answers(serve, status, body, words):
    serve(status, body)
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match=words) as caught:
        hub.fetch("owner/name", ("vae",))
    assert time.perf_counter() - start < 10
    assert len(str(caught.value).splitlines()) < 8


def test_a_token_that_is_no_ascii(serve, monkeypatch):
    serve(200, b"{}")
    monkeypatch.setenv("HF_TOKEN", "hf_\u00fc")
    with pytest.raises(CheckpointError, match="HF_TOKEN") as caught:
        hub.fetch("owner/name", ("vae",))
    assert "\u00fc" not in str(caught.value)


def test_a_repository_without_a_pipeline(monkeypatch, tmp_path):
    import huggingface_hub

    (tmp_path / "README.md").write_text("GGUF only")
    monkeypatch.setattr(hub, "_answers", lambda repo: True)
    for folder in (tmp_path, tmp_path / "never-made"):
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, folder=folder, **__: str(folder))
        with pytest.raises(CheckpointError, match="owner/name has no pipeline"):
            hub.fetch("owner/name", ("vae",))


@pytest.mark.parametrize("name", ["owner/..", "../name", "owner/a..b", "owner/name/../other"])
def test_names_that_lead_elsewhere(serve, tmp_path, name):
    serve(500)
    with pytest.raises(CheckpointError, match="is not a repository's name"):
        hub.fetch(name, ("vae",))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("written", ["", "no commit", "../../../elsewhere", "0" * 40])
def test_a_damaged_reference_is_named(serve, monkeypatch, tmp_path, written):
    """Without a network, the cache's own note of the newest commit decides; here it leads to nothing, or elsewhere."""
    serve(500)
    entry, elsewhere = tmp_path / "models--owner--name", tmp_path / "elsewhere" / "vae"
    (entry / "refs").mkdir(parents=True)
    (entry / "snapshots").mkdir()
    elsewhere.mkdir(parents=True)
    (elsewhere / "config.json").write_text("{}")
    (entry / "refs" / "main").write_text(written)
    monkeypatch.setattr(hub, "_answers", lambda repo: False)
    with pytest.raises(CheckpointError) as caught:
        hub.fetch("owner/name", ("vae",))
    assert str(entry) in str(caught.value)
    assert "delete" in str(caught.value)
