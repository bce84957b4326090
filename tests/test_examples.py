"""The course in examples/: every lesson is short, listed with its picture, ends with a change, and runs as a notebook.

A lesson is a script in cells. What it computes by hand it compares with the package, and prints the difference.
"""

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from jaxpa.cli import main as cli

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
LESSONS = sorted(EXAMPLES.glob("[0-9][0-9]_*.py"))
FIRST_OF_COMMANDS = 12  # from here on a command does the same,
LAST_OF_COMMANDS = 17  # until here
LONGEST = 200  # lines
LARGEST = 650_000  # bytes of a picture
SHORTER = {"18_lora": ("STEPS, BATCH, RATE = 4, 60,", "STEPS, BATCH, RATE = 4, 3,")}  # what would take a minute
WITHOUT_HAND = ("09_training", "17_photograph", "18_lora")  # what they do is not done by the package as well
SPREAD = {"levels": 1, "tokens": 0, "cells": 0}  # largest difference by its unit, besides those of floats

every_lesson = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)


def listed() -> str:
    return (EXAMPLES / "README.md").read_text()


def test_the_course_is_there():
    numbers = [int(lesson.name[:2]) for lesson in LESSONS]
    assert numbers == list(range(1, len(LESSONS) + 1))
    assert re.findall(r"^## (\d+)\.", listed(), re.M) == list(map(str, numbers))


@every_lesson
def test_a_lesson_is_short_and_explains_itself(lesson):
    source = lesson.read_text()
    text = ast.get_docstring(ast.parse(source)) or ""
    title = re.match(r"# (\d+)\. (.+)", text)
    assert source.startswith('# %% [markdown]\n"""\n')
    assert title is not None
    assert int(title[1]) == int(lesson.name[:2])
    assert f"## {title[1]}. {title[2]}\n" in listed()
    assert f"python examples/{lesson.name}" in text
    assert len(source.splitlines()) < LONGEST


@every_lesson
def test_a_lesson_ends_with_something_to_change(lesson):
    cells = re.split(r"^# %%", lesson.read_text(), flags=re.M)
    assert cells[-1].startswith(' [markdown]\n"""\n')
    assert len(cells[-1].partition("## Change something\n")[2]) > 150


@every_lesson
def test_a_lesson_is_listed_with_its_picture(lesson):
    picture = f"gallery/{lesson.stem.replace('_', '-')}.png"
    assert f"]({lesson.name})" in listed()
    assert f"]({picture})" in listed()
    assert f'"{Path(picture).stem}")' in lesson.read_text()  # the name that it saves under
    assert (EXAMPLES / picture).stat().st_size < LARGEST


@every_lesson
def test_a_command_parses_and_names_files_that_exist(lesson, monkeypatch):
    text = lesson.read_text()
    commands = re.findall(r"^ +jaxpa (\w+) (.*)$", text, re.M)
    assert commands or not FIRST_OF_COMMANDS <= int(lesson.name[:2]) <= LAST_OF_COMMANDS
    for name, rest in commands:
        assert f"jaxpa {name} {rest}" in listed()
        monkeypatch.setattr(cli.COMMANDS[name], "run", lambda self: 0)
        assert cli.main([name, *shlex.split(rest)]) == 0
        for file in re.findall(r"examples/pictures/\S+", rest):
            assert (ROOT / file).exists(), file


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", (EXAMPLES / "README.md").read_text()))
def test_links_lead_somewhere(link):
    assert (EXAMPLES / link).exists()


# Notebooks, cell by cell; the first word says where their pictures go.
RUN = """
import json, sys
from pathlib import Path
sys.argv, notebooks = ["lesson", sys.argv[1]], sys.argv[2:]
sys.path.insert(0, "examples")
for notebook in notebooks:
    print("lesson", Path(notebook).stem)
    namespace = {"__name__": "__main__"}
    for k, cell in enumerate(json.loads(Path(notebook).read_text())["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{notebook}, cell {k}", "exec"), namespace)
"""


def run(*words: object) -> str:
    # Lessons compile as a reader's do: they run their programs more often than other tests.
    whole = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "false"}
    environment = {**os.environ, **whole, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


def differences(said: str) -> list[tuple[float, float]]:
    """What lessons print of what they did by hand: how far it is off, and how far it may be."""
    found = re.findall(r"by hand and by .*?: ([\d.]+(?:e[+-]?\d+)?) (?:(levels|tokens|cells) )?apart", said)
    return [(float(number), SPREAD.get(unit, 1e-2)) for number, unit in found]


def check_pictures(folder: Path, names: tuple[str, ...]) -> None:
    for name in (name.replace("_", "-") for name in names):
        with Image.open(folder / f"{name}.png") as made, Image.open(EXAMPLES / "gallery" / f"{name}.png") as kept:
            assert made.size == kept.size


def test_a_script_runs(tmp_path):
    said = run("examples/04_rope.py", tmp_path)
    assert differences(said)
    check_pictures(tmp_path, ("04_rope",))


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory) -> Path:
    pytest.importorskip("jupytext", reason="Jupytext, of the extra docs, makes the notebooks")
    folder = tmp_path_factory.mktemp("notebooks")
    run("examples/make_notebooks.py", folder)
    assert {file.stem for file in folder.glob("*.ipynb")} == {lesson.stem for lesson in LESSONS}
    for name, (long, short) in SHORTER.items():
        file = folder / f"{name}.ipynb"
        text = file.read_text()
        assert long in text
        file.write_text(text.replace(long, short))
    return folder


@pytest.mark.parametrize("third", range(3), ids=lambda third: f"third_{third + 1}")
def test_lessons_run_as_notebooks(third, notebooks, tmp_path):
    names = tuple(lesson.stem for lesson in LESSONS[third::3])  # the long ones come last
    said = run("-c", RUN, tmp_path, *(notebooks / f"{name}.ipynb" for name in names))
    for name, printed in zip(names, said.split("lesson ")[1:], strict=True):
        found = differences(printed)
        assert found or name in WITHOUT_HAND, name
        assert all(off <= most for off, most in found), printed
    check_pictures(tmp_path, names)
