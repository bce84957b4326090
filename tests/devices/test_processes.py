"""Two processes of this machine make the picture that one makes, and one of them writes it."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxpa.batch.table import Line
from jaxpa.cli.lines import parse
from jaxpa.errors import JaxpaError

ROOT = Path(__file__).parents[2]
WORDS = ("generate", "--prompt", "a red star at night", "--steps", "1", "--json")


def command(*words: object, **variables: str) -> subprocess.Popen[str]:
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # programs that run once
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)} | quick | variables
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-m", "jaxpa", *map(str, words)], env=env, stdout=pipe, stderr=pipe,
                            text=True, cwd=ROOT)  # fmt: skip


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def both(folders: list[Path]) -> tuple[list[int], list[tuple[str, str]]]:
    """The command in two processes, a folder for each: their statuses, and what they say on stdout and stderr."""
    shared = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    started = [
        command(*WORDS, "--mesh", "model=2", "--distributed", "--out", folder / "a.png",
                **shared, JAX_PROCESS_ID=str(i))
        for i, folder in enumerate(folders)
    ]  # fmt: skip
    said = [each.communicate(timeout=180) for each in started]
    return [each.returncode for each in started], said


def test_two_processes_make_one_picture(run, tmp_path):
    """The network's halves are on two processes, which have folders of their own here."""
    folders = [tmp_path / str(i) for i in range(2)]
    for folder in folders:
        folder.mkdir()
    assert run(*WORDS, "--out", tmp_path / "one.png")[0] == 0
    statuses, said = both(folders)
    if -signal.SIGABRT in statuses:  # one heard nothing of the other: a busy machine has a second try
        statuses, said = both(folders)
    assert statuses == [0, 0], said
    assert json.loads(said[0][0])["files"] == [str(folders[0] / "a.png")]
    assert said[1][0] == ""
    assert list(folders[1].iterdir()) == []
    one, two = (np.asarray(Image.open(file), int) for file in (tmp_path / "one.png", folders[0] / "a.png"))
    assert np.abs(one - two).max() <= 1  # sums in another order


@pytest.mark.parametrize(("variables", "flags", "says"), [
    ({}, (), "--distributed needs --mesh"),
    ({}, ("--mesh", "data=1"), "finds no other processes"),
    ({"JAX_NUM_PROCESSES": "two"}, ("--mesh", "data=1"), "JAX_NUM_PROCESSES=two is not a whole number"),
])  # fmt: skip
def test_alone(run, tmp_path, monkeypatch, variables, flags, says):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    status, out, err = run(*WORDS, "--distributed", *flags, "--out", tmp_path / "a.png")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert says in err


def test_a_line_of_a_batch_is_no_process_of_several():
    with pytest.raises(JaxpaError, match="--share"):
        parse(Line(1, "jobs.txt:1", [*WORDS, "--mesh", "data=1", "--distributed"]), None)
