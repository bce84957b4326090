"""The course in examples/: every script is short, says what it teaches, is listed with its picture, and one runs."""

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
SCRIPTS = sorted(EXAMPLES.glob("[0-9][0-9]_*.py"))
FIRST_OF_COMMANDS = 12  # from here on a command does the same
LONGEST = 120  # lines
LARGEST = 300_000  # bytes of a picture

every_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)


def listed() -> str:
    return (EXAMPLES / "README.md").read_text()


def test_the_course_is_there():
    numbers = [int(script.name[:2]) for script in SCRIPTS]
    assert numbers == sorted(set(numbers))
    assert numbers


@every_script
def test_a_script_is_short_and_explains_itself(script):
    source = script.read_text()
    tree = ast.parse(source)
    compile(source, str(script), "exec")
    assert f"python examples/{script.name}" in (ast.get_docstring(tree) or "")
    last = tree.body[-1]
    assert isinstance(last, ast.If)
    assert ast.unparse(last.test) == "__name__ == '__main__'"
    assert len(source.splitlines()) < LONGEST


@every_script
def test_a_script_is_listed_with_its_picture(script):
    picture = f"gallery/{script.stem.replace('_', '-')}.png"
    assert f"]({script.name})" in listed()
    assert f"]({picture})" in listed()
    assert f'"{Path(picture).stem}")' in script.read_text()  # the name that it saves under
    assert (EXAMPLES / picture).stat().st_size < LARGEST


@every_script
def test_a_command_parses_and_names_files_that_exist(script, monkeypatch):
    text = script.read_text()
    commands = re.findall(r"^ +jaxpa (\w+) (.*)$", text, re.M)
    assert commands or int(script.name[:2]) < FIRST_OF_COMMANDS
    for name, rest in commands:
        assert f"jaxpa {name} {rest}" in listed()
        monkeypatch.setattr(cli.COMMANDS[name], "run", lambda self: 0)
        assert cli.main([name, *shlex.split(rest)]) == 0
        for file in re.findall(r"examples/pictures/\S+", rest):
            assert (ROOT / file).exists(), file


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", (EXAMPLES / "README.md").read_text()))
def test_links_lead_somewhere(link):
    assert (EXAMPLES / link).exists()


def test_a_script_runs(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    subprocess.run(
        [sys.executable, "examples/04_rope.py", str(tmp_path)], cwd=ROOT, env=environment, check=True, timeout=300
    )
    with Image.open(tmp_path / "04-rope.png") as made, Image.open(EXAMPLES / "gallery" / "04-rope.png") as kept:
        assert made.size == kept.size
