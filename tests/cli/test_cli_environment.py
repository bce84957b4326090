"""What surrounds a command: files that are there already, pipes that close, caches that cannot be written, help."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxpa.checkpoint.source import resolve
from jaxpa.cli import console
from jaxpa.cli.command import spec_of
from jaxpa.cli.files import check_labels, free, outputs, settle
from jaxpa.cli.main import COMMANDS
from jaxpa.cli.mask import MaskCommand
from jaxpa.cli.parse import defaults
from jaxpa.cli.plan import PlanCommand
from jaxpa.errors import JaxpaError
from jaxpa.media.images import read_metadata, save_image
from jaxpa.presets import PRESETS
from jaxpa.request.request import Request

ROOT = Path(__file__).parents[2]
DEFAULT = Path("jaxpa.png")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def picture(file, **metadata):
    save_image(Image.new("RGB", (8, 8)), file, metadata or None)


def test_a_default_name_counts_on(folder):
    """Past every file of that name, the sheet's too, whoever made them."""
    assert free(DEFAULT, [""], True).all == [DEFAULT, Path("jaxpa-figure.png")]
    picture("jaxpa.png", seed=1)
    picture("jaxpa-2-figure.png")
    assert free(DEFAULT, [""], True).files == [Path("jaxpa-3.png")]
    assert free(DEFAULT, ["0", "1"], False).files == [Path("jaxpa-0.png"), Path("jaxpa-1.png")]


def test_two_commands_at_once_take_two_names(folder, monkeypatch):
    """All are prepared before one writes; the last finds its name taken in the very moment."""
    Image.new("RGB", (100, 100)).save("in.png")
    commands = [MaskCommand(image=Path("in.png"), box=f"0.1,0.2,0.9,0.{k}") for k in (9, 8, 7)]
    prepared = [command.prepare() for command in commands]
    assert {each.outputs.files[0] for each in prepared} == {Path("mask.png")}
    monkeypatch.setattr(commands[2], "settle", lambda _: prepared[2].outputs)
    said = [command.make(each).content for command, each in zip(commands, prepared, strict=True)]
    assert [each["files"] for each in said] == [["mask.png"], ["mask-2.png"], ["mask-3.png"]]
    assert [each["figure"] for each in said] == ["mask-figure.png", "mask-2-figure.png", "mask-figure-2.png"]
    for k, each in zip((9, 8, 7), said, strict=True):  # each has its own
        mask = np.asarray(Image.open(each["files"][0])) > 127
        assert abs(mask.mean() - 0.8 * (k - 2) / 10) < 0.01
    assert len(list(folder.iterdir())) == 7


def test_what_comes_while_a_command_runs_is_kept(run, folder, monkeypatch):
    """Whoever made it; the picture is not lost either, but for a line of a batch, which is made again."""
    Image.new("RGB", (100, 100)).save("in.png")
    picture("b.png", seed=1)
    words = ["--image", "in.png", "--box", "0,0,1,1", "--out"]
    real, come = MaskCommand.make, {}

    def make(self, prepared):
        for name, metadata in come.items():
            picture(name, **metadata)
        return real(self, prepared)

    monkeypatch.setattr(MaskCommand, "make", make)
    for out, came in (("a.png", {"seed": 1}), ("b.png", {})):  # b.png was there, and has been painted over
        come = {out: came, f"{out[0]}-figure.png": {}}
        status, line, err = run("mask", *words, out, "--json")
        said = json.loads(line)
        assert (status, said["files"], said["replaced"]) == (0, [f"{out[0]}-2.png"], [])
        assert said["figure"] == f"{out[0]}-figure-2.png"
        assert (err.count("warning: "), f"{out} has come while this ran, and is kept" in err) == (2, True)
        assert Image.open(out).size == Image.open(f"{out[0]}-figure.png").size == (8, 8)
    come = {"c.png": {"seed": 1}}
    assert json.loads(run("mask", *words, "c.png", "--force", "--json")[1])["files"] == ["c.png"]
    Path("jobs.txt").write_text("mask --image in.png --box 0,0,1,1 --no-figure --out d.png")
    come = {"d.png": {}}
    status, _, err = run("batch", "jobs.txt")
    assert (status, "d.png has come while this ran, and is kept" in err, Image.open("d.png").size) == (1, True, (8, 8))
    Path("d.png").unlink()
    come = {}
    assert "1 made, 0 failed" in run("batch", "jobs.txt")[2]
    assert "(replaced)" in run("batch", "jobs.txt", "--again")[2]


def test_only_pictures_of_this_package_are_replaced(folder):
    out = Path("a.png")
    picture(out, seed=1)
    assert settle(outputs(out, [""], True), [], False).replaced == (out,)
    picture("a-figure.png")  # a user's own
    with pytest.raises(JaxpaError, match=r"a-figure\.png exists and was not made by jaxpa"):
        settle(outputs(out, [""], True), [], False)
    assert settle(outputs(out, [""], True), [], True).replaced == (out, Path("a-figure.png"))


def test_a_link_to_nowhere_is_kept(folder):
    """It may lead to a disk that is not mounted now."""
    Path("a.png").symlink_to("/nowhere/a.png")
    with pytest.raises(JaxpaError, match="is a link to nowhere"):
        settle(outputs(Path("a.png")), [], False)
    settle(outputs(Path("a.png")), [], True)


def test_an_input_is_never_replaced(folder):
    picture("a.png", seed=1)
    os.link("a.png", "b.png")
    for out in ("a.png", "./a.png", "b.png"):
        with pytest.raises(JaxpaError, match="is an input"):
            settle(outputs(Path(out)), [Path("a.png")], True)


def test_files_by_command(run, folder, pictures):
    star = ["generate", "--prompt", "a red star", "--steps", 1]
    assert run(*star)[0] == run(*star)[0] == 0
    assert sorted(path.name for path in folder.iterdir()) == ["jaxpa-2.png", "jaxpa.png"]
    shutil.copy(pictures / "car.png", "mine.png")
    before = Path("mine.png").read_bytes()
    status, _, err = run(*star, "--out", "mine.png")
    assert (status, err.count("\n")) == (2, 1)
    assert "--force" in err
    assert Path("mine.png").read_bytes() == before
    assert run(*star, "--out", "mine.png", "--force")[0] == 0
    assert "(replaced)" in run(*star, "--out", "mine.png")[2]
    assert read_metadata("mine.png")["request"] == {"prompt": "a red star", "sampling": {"steps": 1}}


def test_an_embedding_file(run, folder):
    """The picture of an encoded prompt is that of the prompt; what does not go together is said."""
    from jaxpa.cli.command import _load
    from jaxpa.request.groups import Checkpoint

    _load(Checkpoint(), None).encode_text("a red star").save("star.safetensors")
    for k, words in enumerate((["--prompt", "a red star"], ["--embedding", "star.safetensors"])):
        assert run("generate", *words, "--steps", 1, "--out", f"{k}.png")[0] == 0
    a, b = (Image.open(f"{k}.png").tobytes() for k in range(2))
    assert max(abs(x - y) for x, y in zip(a, b, strict=True)) <= 1
    assert "give a --prompt" in run("generate")[2]
    assert "not both" in run("generate", "--prompt", "x", "--embedding", "star.safetensors")[2]
    assert "none.safetensors" in run("generate", "--embedding", "none.safetensors")[2]
    _load(Checkpoint(), None).encode_text(["a red star", "a car"]).save("two.safetensors")
    status, _, err = run("generate", "--embedding", "two.safetensors")
    assert (status, err.count("\n")) == (2, 1)
    assert "two.safetensors holds 2 prompts, and a command draws one" in err


BESIDE_A_FILE = {
    "a pipe": (["generate", "--prompts", "pipe"], "pipe cannot be read: this is a named pipe, not a file"),
    "a pipe of requests": (["batch", "pipe", "--journal", "j"], "this is a named pipe, not a file"),
    "a device": (["generate", "--prompts", "/dev/zero"], "this is a device, not a file"),
    "a device of requests": (["batch", "/dev/zero", "--journal", "j"], "this is a device, not a file"),
    "a pipe of text": (["generate", "--embedding", "pipe"], "named pipe"),
    "no name": (["invert", "--prompt", "x", "--image", ""], "--image needs a value, and here it is empty"),
    "no name to write": (["generate", "--prompt", "x", "--out="], "--out needs a value, and here it is empty"),
    "no model": (["plan", "--model", ""], "a model is 'mini', a hub id, a URL, or the name of a folder or a file"),
    "no picture": (["replay", ""], "PICTURE is empty"),
    "a null": (["generate", "--prompt", "a red star", "--out", "a\0.png"], "no file has such a name"),
    "digits": (["generate", "--prompt", "x", "--seed", "1" * 5000], "give whole numbers"),
}


@pytest.mark.parametrize("name", BESIDE_A_FILE)
def test_what_is_no_file(run, folder, name):
    """Refused at once: a pipe without a writer would be waited for, and a device read without end."""
    os.mkfifo("pipe")
    words, said = BESIDE_A_FILE[name]
    status, _, err = run(*words)
    assert (status, err.count("\n")) == (2, 1), err
    assert said in err
    assert len(err) < 300
    assert [file.name for file in folder.iterdir()] == ["pipe"]


def test_many_names(folder):
    """Of 100,000 pictures the names are compared in a moment."""
    check_labels([str(k) for k in range(100_000)])
    with pytest.raises(JaxpaError, match=r"asked for twice \(7\)"):
        check_labels([*map(str, range(100_000)), "7"])


def test_a_preset_is_switched_off_on_the_command_line(run, folder, pictures, monkeypatch):
    car = ["personalize", "--subject", pictures / "car.png", "--mask", pictures / "car-mask.png", "--prompt", "a car"]
    words = ["--steps", 1, "--preset", "paper", "--concat", "none", "--guidance-inside", "same", "--no-figure"]
    assert run(*car, *words, "--out", "a.png")[0] == 0
    made = read_metadata("a.png")
    assert (made["resolved"]["switches"]["concat"], made["request"]["method"]["concat"]) == (None, None)
    assert PRESETS["paper"].concat is not None


def test_a_plan_plans_what_is_said(run):
    above = lambda *words: json.loads(run("plan", "--json", *words)[1])["steps_above_tau"]  # noqa: E731
    assert above("--tau", "0") == [28]
    assert above("--tau", "1") == [0]
    assert json.loads(run("plan", "--json", "--guidance", "0")[1])["steps"] == 28
    for words in (["--steps", 0], ["--num-images", -8], ["--references", -1], ["--height", 0], ["--batch-size", 0]):
        assert run("plan", *words)[0] == 2


def test_what_cannot_fit_is_refused(run, folder):
    for words in (["generate", "--prompt", "a red star", "--num-images", 10**6], ["bench", "--batch", 10**6]):
        status, _, err = run(*words)
        assert (status, err.count("\n"), err.count("GiB")) == (2, 1, 2), err
        assert "--force" in err
    assert not list(folder.iterdir())


def command(*words, **settings):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **settings.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-m", "jaxpa", *words], capture_output=True, text=True, env=environment, **settings
    )  # fmt: skip


def test_a_reader_that_has_seen_enough(tmp_path):
    """A closed pipe ends the command without a traceback."""
    shell = f"set -o pipefail; {sys.executable} -m jaxpa info --json | true"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode in (0, 141)
    assert done.stderr == ""


def test_streams_that_are_closed(tmp_path):
    """What is printed goes nowhere, not into the next file that is opened."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    shell = f"{sys.executable} -m jaxpa mask --image a.png --box 0,0,1,1 --out b.png --json <&- >&- 2>&-"
    done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0
    assert read_metadata(tmp_path / "b.png")
    shell = f"{sys.executable} -m jaxpa info none --json 2>&-"
    done = subprocess.run(["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_there_may_be_no_stdout_to_keep(name, monkeypatch):
    """As under pythonw."""
    monkeypatch.setattr(sys, name, None)
    console.keep_stdout()
    assert getattr(sys, name) is None


def test_an_error_of_the_system_is_a_line(run, folder):
    status, _, err = run("mask", "--image", "a.png", "--box", "0,0,1,1", "--out", f"{'x' * 300}.png")
    assert (status, err) == (2, "jaxpa: a.png: no such file: check the path of the picture\n")
    picture("a.png")
    status, _, err = run("mask", "--image", "a.png", "--box", "0,0,1,1", "--out", f"{'x' * 300}.png")
    assert (status, err) == (2, f"jaxpa: {'x' * 300}.png: File name too long\n")


def test_sigterm_leaves_nothing(folder, run, monkeypatch):
    from jaxpa.checkpoint import convert

    monkeypatch.setattr(convert, "_copy_rest", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    status, _, err = run("convert", "mini", "new")
    assert (status, err.splitlines()[-1]) == (143, "jaxpa: terminated")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "error", [MemoryError("cannot allocate"), RuntimeError("RESOURCE_EXHAUSTED: 34 bytes"), RuntimeError("a fault")]
)
def test_full_memory_is_a_line(run, folder, monkeypatch, error):
    """Whether XLA or NumPy asked for it; another fault keeps its traceback."""

    def full(_: object) -> int:
        raise error

    monkeypatch.setattr(PlanCommand, "run", full)
    if "fault" in str(error):
        with pytest.raises(RuntimeError, match="a fault"):
            run("plan")
        return
    status, _, err = run("plan")
    assert (status, err) == (2, f"jaxpa: the memory is full ({error}): make fewer pictures at once, or smaller ones\n")


def test_a_working_directory_that_is_gone(tmp_path):
    """Said in a line, before a library stumbles over it."""
    gone = tmp_path / "gone"
    gone.mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    shell = f"rmdir {gone}; {sys.executable} -m jaxpa generate --prompt 'a cat'"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, cwd=gone, env=environment)
    assert (done.returncode, done.stderr) == (
        2,
        "jaxpa: the working directory has been removed: change to another one\n",
    )


def test_no_place_for_compiled_programs(folder, monkeypatch):
    """It runs without, after one warning."""
    import jax

    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/cache")
    named = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        with pytest.warns(UserWarning, match="compiled programs are not kept"):
            assert console.compilation_cache() is None
    finally:
        jax.config.update("jax_compilation_cache_dir", named)


def test_a_damaged_program(tmp_path, capsys):
    """As a full disk or a kill leaves it; JAX would keep it, and tell of each one without a word of what helps."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache as cache

    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    try:
        for name, value in zip(names, (str(tmp_path), 0.0), strict=True):
            jax.config.update(name, value)
        for damage in (False, True):
            for file in tmp_path.glob("*-cache") if damage else ():
                file.write_bytes(file.read_bytes()[:50])
            cache.reset_cache()
            with console.talking():
                for add in (3.0, 5.0):
                    jax.jit(lambda x, add=add: x + add)(1.0)
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        cache.reset_cache()
    err = capsys.readouterr().err
    assert err.startswith(f"jaxpa: warning: compiled programs in {tmp_path} cannot be read")
    assert (err.count("\n"), "delete it" in err) == (1, True), err


def test_a_platform_that_is_not_there(tmp_path):
    done = command("plan", env={"JAX_PLATFORMS": "cuda"}, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "JAX_PLATFORMS" in done.stderr


def test_a_variable_that_jax_does_not_understand():
    done = command("--version", env={"JAX_ENABLE_X64": "maybe"})
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "'maybe' for environment 'JAX_ENABLE_X64'" in done.stderr


def test_version(run):
    status, out, _ = run("--version")
    assert status == 0
    assert out.startswith("jaxpa ")
    assert "jax " in out


@pytest.mark.parametrize("name", ["generate", "personalize", "inpaint", "outpaint", "plan", "mask"])
def test_help_shows_the_defaults_of_the_model(name, run, capsys):
    """Those of the headers and of the preset, never None; and the words that a drawn world knows."""
    with pytest.raises(SystemExit):
        run(name, "--help")
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "None" not in text
    assert "28" in text
    if name in ("personalize", "plan"):
        for said in ("(default: ode)", "(default: moved)", "(default: 0.5)", "(default: 0.1)"):
            assert said in text
    if name == "generate":
        assert "mug, house, car, fish, mushroom, star, boat, cat" in text
        assert "(default: 96)" in text


@pytest.mark.parametrize(("name", "words"), [
    ("batch", "[FILE]"), ("convert", "SOURCE FOLDER"), ("info", "[SOURCE]"), ("replay", "PICTURE"),
])  # fmt: skip
def test_help_calls_words_without_a_flag_as_its_texts_do(name, words, run, capsys):
    with pytest.raises(SystemExit):
        run(name, "--help")
    assert f"usage: jaxpa {name} [-h] [OPTIONS] {words}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("name", "words"), [
    ("generate", ["--prompt", "-h"]), ("generate", ["--promt", "x", "--help"]), ("generate", ["--steps", "--help"]),
    ("generate", ["--lora", "", "--help"]), ("personalize", ["--mask", "m.png", "--help"]),
])  # fmt: skip
def test_help_whatever_else_is_said(name, words, run, capsys):
    with pytest.raises(SystemExit) as ended:
        run(name, *words)
    assert ended.value.code == 0
    assert f"usage: jaxpa {name}" in capsys.readouterr().out


def test_help_shows_a_command_s_own_defaults(run, capsys):
    """The checkpoint's values stand where the command has none of its own: `bench` times a few steps, and not 28."""
    with pytest.raises(SystemExit):
        run("bench", "--help")
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Steps of a loop that is timed. (default: 4)" in text
    assert "Text tokens of a prompt. (default: 32)" in text
    assert "None" not in text


@pytest.mark.parametrize("name", ["inpaint", "outpaint"])
@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_help_of_an_edit_shows_what_runs(name, preset):
    """Every switch and tau as the request takes them where nothing is said."""
    kind = COMMANDS[name]
    shown = defaults(kind, spec := spec_of(resolve("mini")), preset)["method"]
    part = {"mask": "mask.png"} if name == "inpaint" else {"pad": (8, 8, 8, 8)}
    request = Request.of("a car", image="car.png", preset=preset, **part)
    assert shown.given() == {key: getattr(request.switches(spec), key) for key in shown.given()}
    assert {"start", "margin", "shuffle", "outline"} <= shown.given().keys()
    assert shown.tau == request.taus(spec)


@pytest.mark.parametrize(("name", "flags", "read"), [
    ("invert", "seed num-images guidance solver cache negative-prompt batch-size", "--sigmas"),
    ("inpaint", "coverage", "--margin"),
    ("outpaint", "coverage", "--margin"),
    ("bench", "redux keep-resident", "--keep-lora"),
])  # fmt: skip
def test_a_flag_that_a_command_does_not_read(name, flags, read, run, capsys):
    """It is not in the help, nor among what completes, and whoever types it is told so in one line."""
    with pytest.raises(SystemExit):
        run(name, "--help")
    text = capsys.readouterr().out
    assert read in text
    for flag in flags.split():
        assert f"--{flag} " not in text
        status, out, err = run(name, f"--{flag}", 1, "--image", "x.png")
        assert (status, out) == (2, "")
        assert err == f"jaxpa: --{flag} would have no effect: {name} does not read it. Leave it out\n"


def test_help_breaks_lines_where_the_terminal_ends(run, capsys, monkeypatch):
    """Not where the source does: with room for it, the help of a flag is one line."""
    monkeypatch.setenv("COLUMNS", "2000")
    with pytest.raises(SystemExit):
        run("personalize", "--help")
    assert "replaced, and the command says so; any other file needs --force. The names" in capsys.readouterr().out


@pytest.mark.parametrize("columns", [1, 4])
def test_help_ends_however_narrow_the_terminal_is(run, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as ended:
        run("--help")
    assert ended.value.code == 0
    assert "personalize" in capsys.readouterr().out


def test_a_word_that_the_model_never_saw(run, folder):
    _, _, err = run("generate", "--prompt", "a red dragon in the snows", "--steps", 1)
    assert err.count("never seen 'dragon'") == 1
    assert "'snows': did you mean 'snow'?" in err
    assert "warning" not in run("generate", "--prompt", "a red mug in the snow", "--steps", 1)[2]
