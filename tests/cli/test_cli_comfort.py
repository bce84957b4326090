"""What makes commands pleasant: quiet, a log, previews."""

import ast
import logging
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jaxpa
from jaxpa.cli import console, picturing
from jaxpa.cli.flags import parse_every
from jaxpa.errors import JaxpaError
from jaxpa.media.images import save_image

PACKAGE = Path(jaxpa.__file__).parent
STAR = ["generate", "--prompt", "a red star", "--steps", 4]
# Outside of the commands: a child process answers its parent, and an interruption comes before there is a log.
PRINTING = {"__main__.py", "devices/compiled.py"}


def test_the_library_prints_nothing():
    """It logs; the commands print results on stdout, and all else they log, too."""
    for file in PACKAGE.rglob("*.py"):
        name = file.relative_to(PACKAGE).as_posix()
        calls = [
            node
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        ]
        if name.startswith("cli/"):
            calls = [call for call in calls if name != "cli/console.py" and any(k.arg == "file" for k in call.keywords)]
        assert not calls or name in PRINTING, name


def test_quiet(run, tmp_path, caplog):
    """Errors and warnings, and nothing else; another program's handlers hear what is said as ever."""
    out = tmp_path / "o.png"
    with caplog.at_level(logging.INFO, logger="jaxpa"):
        status, _, err = run(*STAR, "--out", out)
    assert (status, err.startswith(f"jaxpa: {out}: load")) == (0, True)
    assert [record.name for record in caplog.records] == ["jaxpa"]
    assert run(*STAR, "--out", out, "--quiet") == (0, "", "")
    assert run("replay", out, "--out", tmp_path / "p.png", "--quiet") == (0, "", "")
    status, _, err = run("generate", "--prompt", "a zebra", "--steps", 1, "--out", tmp_path / "z.png", "--quiet")
    assert (status, err.count("\n")) == (0, 1)
    assert err.startswith("jaxpa: warning: this checkpoint has never seen 'zebra'")
    assert run(*STAR, "--out", tmp_path / "none" / "o.png", "--quiet")[0] == 2
    jobs = tmp_path / "jobs.txt"
    jobs.write_text("mask --image none.png --box 0,0,1,1 --out m.png\n")
    assert "none.png" in run("batch", jobs, "--quiet")[2]
    assert not logging.getLogger("jaxpa").handlers


def test_a_preview(run, tmp_path, monkeypatch):
    """Written every so many steps, as the estimate that Python hears of, and gone at the end."""
    written = []
    monkeypatch.setattr("jaxpa.media.images.save_image", lambda image, file, data, **how: (
        written.append((Path(file).name, data.get("preview"), image)), save_image(image, file, data, **how)
    ))  # fmt: skip
    out, preview = tmp_path / "o.png", tmp_path / "o.preview.png"
    assert run(*STAR, "--out", out, "--preview", "every", 2)[0] == 0
    assert [(name, done) for name, done, _ in written] == [(preview.name, 2), (preview.name, 4), (out.name, None)]
    assert not preview.exists()
    np.testing.assert_array_equal(np.asarray(written[1][2]), np.asarray(Image.open(out)))  # the last is the picture
    bytes_ = out.read_bytes()
    assert run(*STAR, "--out", out)[0] == 0
    assert out.read_bytes() == bytes_
    Image.new("RGB", (8, 8)).save(preview)
    status, _, err = run(*STAR, "--out", out, "--preview", 2)
    assert status == 2
    assert "o.preview.png exists and was not made by jaxpa" in err
    out.rename(preview)
    status, _, err = run(*STAR, "--out", out, "--preview", 2)
    assert (status, "o.preview.png is a picture" in err, preview.read_bytes() == bytes_) == (2, True, True)
    (tmp_path / "jobs.txt").write_text("generate --prompt x --preview 2 --out a.png")
    assert "--preview shows one picture while it comes, and a batch" in run("batch", tmp_path / "jobs.txt")[2]


def test_what_is_done_is_kept(run, tmp_path, monkeypatch):
    """Pictures are written as they come: an interruption leaves those of the batches before it."""
    words = [*STAR, "--num-images", 3, "--batch-size", 1, "--out"]
    assert run(*words, tmp_path / "all.png")[0] == 0
    show, decoded = console.Progress.show, []

    def third_time(self, stage, done, total):
        decoded.extend([stage] * (stage == "decode"))
        if len(decoded) == 3:
            raise KeyboardInterrupt
        show(self, stage, done, total)

    monkeypatch.setattr(console.Progress, "show", third_time)
    assert run(*words, tmp_path / "some.png")[0] == 130
    monkeypatch.undo()
    assert sorted(file.name for file in tmp_path.glob("some*")) == ["some-0.png", "some-1.png"]
    for k in (0, 1):
        assert (tmp_path / f"some-{k}.png").read_bytes() == (tmp_path / f"all-{k}.png").read_bytes()


def test_a_preview_does_not_outlive_a_failure(tmp_path):
    class Broken:
        def stream(self, request, pictures, on_step):
            on_step(jaxpa.runs.Step("sample", 1, 4, None, lambda k: Image.new("RGB", (8, 8))))
            assert preview.exists()
            raise KeyboardInterrupt
            yield

    out, preview = tmp_path / "o.png", tmp_path / "o.preview.png"
    command = picturing.Picturing(prompt="x", out=out, preview=parse_every(["1"]))
    with pytest.raises(KeyboardInterrupt):
        list(command.draw(Broken(), None, None, lambda step: None))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_how_often(run):
    assert parse_every(["5"]) == parse_every(["every", "5"]) == 5
    for words in ([], ["every"], ["0"], ["-1"], ["five"], ["5", "6"], ["each", "5"], ["every", "5", "6"], ["²"]):
        with pytest.raises(JaxpaError, match="number of steps"):
            parse_every(words)
    assert "--preview" in run(*STAR, "--preview", "often")[2]


def test_bars_are_for_terminals(monkeypatch, capsys):
    """With a rate and the time that is left; none in a file, and none for who wants it quiet."""
    for terminal, quiet in ((True, False), (True, True), (False, False)):
        monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal, raising=False)
        with console.talking():
            console.hush(quiet)
            progress = console.Progress()
            for done in (1, 2, 3):
                progress(jaxpa.runs.Step("sample", done, 3))
        err = capsys.readouterr().err
        assert ("sample" in err and "<" in err and "it/s" in err) == (terminal and not quiet), (terminal, quiet)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_shell_completes_words(run, tmp_path):
    """Commands, flags and choices, by the script alone; those of zsh and fish name their own function."""
    status, script, err = run("completion", "bash")
    assert (status, err) == (0, "")
    (tmp_path / "script").write_text(script)
    for words, want in (
        (["repl"], {"replay"}),
        (["generate", "--prev"], {"--preview"}),
        (["personalize", "--level", ""], {"layer", "token"}),
    ):
        line = ["jaxpa", *words]
        text = f"source ./script; COMP_WORDS=({' '.join(word or repr('') for word in line)})"
        text += f"; COMP_CWORD={len(line) - 1}; _tyro_jaxpa; echo ${{COMPREPLY[@]}}"
        found = subprocess.run(["bash", "-c", text], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert set(found.stdout.split()) == want, (words, found)
    assert "#compdef jaxpa" in run("completion", "zsh")[1]
    assert "function _tyro_jaxpa" in run("completion", "fish")[1]
    assert run("completion", "cmd")[::2] == (2, "jaxpa: SHELL 'cmd' is not one of bash, zsh, fish\n")
