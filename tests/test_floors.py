"""The house of layout: every file of the package has a floor, and imports go left and down, never up.

A floor is a row of groups, from left to right. A file may import from the floors below and from the groups to its left
on its own floor; files of one group do not know each other.
"""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "jaxpa"
FLOORS = (
    ("config errors",),
    ("tokens rope schedule cost",),
    ("layers", "transformer autoencoder t5 clip", "attention"),
    ("sampling", "inversion", "personalize", "compose"),
    ("files hub sharding", "keys", "parts", "source", "checkpoint", "report"),
    (
        "text timing masks figures scores",
        "images",
        "subjects metrics",
        "edit model",
        "observe",
        "pipeline",
        "bench plan evaluate",
        "__init__",
    ),
    ("console", "options", "tools pictures drawing", "batch", "cli", "__main__"),
)
PLACES = {
    name: (floor, group)
    for floor, groups in enumerate(FLOORS)
    for group, names in enumerate(groups)
    for name in names.split()
}
METHOD, NETWORKS = 3, 2  # the method's floor knows no network
ARRAYS = {"jax", "numpy"}  # all that the floors of token arithmetic and of the method may import from outside
WITH_JAX = {"numpy", "scipy", "ml_dtypes"}  # packages that come with jax
MODULES = {"pillow": "PIL"}  # packages that are imported by another name
LONGEST = 400  # lines

FILES = sorted(PACKAGE.glob("*.py"))
every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def imports(source: str) -> set[str]:
    """Every module that is imported, anywhere in the file: "numpy", "jaxpa.tokens"; "jaxpa" means its __init__."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                found.add("." * node.level + (node.module or ""))
            elif node.module == "jaxpa":
                found |= {f"jaxpa.{a.name}" if (PACKAGE / f"{a.name}.py").exists() else "jaxpa" for a in node.names}
            elif node.module:
                found.add(node.module)
    return found


def faults(name: str, modules: set[str]) -> list[str]:
    """What a file of the package may not import, and why."""
    floor, group = PLACES[name]
    found = []
    for module in sorted(modules):
        top, _, rest = module.partition(".")
        if not top:
            found.append(f"{module}: imports are absolute")
        if top != "jaxpa":
            continue
        target = rest.split(".")[0] or "__init__"
        if target not in PLACES:
            found.append(f"{module}: it has no floor")
            continue
        their_floor, their_group = PLACES[target]
        if their_floor > floor:
            found.append(f"{module}: floor {their_floor} is above floor {floor}")
        elif their_floor == floor and their_group >= group:
            found.append(f"{module}: not to the left of {name} on floor {floor}")
        elif floor == METHOD and their_floor == NETWORKS:
            found.append(f"{module}: the method knows no network")
    return found


def outside(file: Path) -> set[str]:
    """Names of the packages that a file imports from."""
    tops = {module.split(".")[0] for module in imports(file.read_text()) if not module.startswith(".")}
    return tops - {"jaxpa"} - sys.stdlib_module_names


@pytest.mark.parametrize(("name", "modules", "count"), [
    ("personalize", {"jaxpa.sampling", "jaxpa.tokens", "jax.numpy", "dataclasses"}, 0),
    ("sampling", {"jaxpa.inversion"}, 1),  # to the right
    ("personalize", {"jaxpa.layers"}, 1),  # a network
    ("clip", {"jaxpa.t5"}, 1),  # beside
    ("tokens", {"jaxpa.layers", "jaxpa.cli"}, 2),  # above
    ("checkpoint", {"jaxpa"}, 1),  # the package's face is above
    ("cli", {"jaxpa", "jaxpa.pipeline"}, 0),
    ("cli", {".pipeline"}, 1),  # relative
    ("cli", {"jaxpa.elsewhere"}, 1),
])  # fmt: skip
def test_the_rule_itself(name, modules, count):
    assert len(faults(name, modules)) == count


def test_imports_are_found_wherever_they_stand():
    source = "import os\nfrom jaxpa import tokens, load\ndef f():\n  from jaxpa.cli import main\n  import jaxpa.t5 as t"
    assert imports(source) == {"os", "jaxpa", "jaxpa.tokens", "jaxpa.cli", "jaxpa.t5"}


def test_every_file_has_a_floor():
    assert FILES
    homeless = [file.stem for file in FILES if file.stem not in PLACES]
    assert homeless == [], f"give these files of jaxpa/ a place in FLOORS of {Path(__file__).name}: {homeless}"
    assert not [path for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))]  # the house is flat


@every_file
def test_imports_go_left_and_down(file):
    if file.stem in PLACES:  # else the test above says so
        assert faults(file.stem, imports(file.read_text())) == []


@every_file
def test_imports_from_outside(file):
    """Run-time packages of pyproject.toml only: no torch, and nothing of weights, examples and tests."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    packages = {re.split(r"[^\w-]", line)[0].lower() for line in project["dependencies"]}
    assert outside(file) <= {MODULES.get(name, name) for name in packages} | WITH_JAX
    if PLACES.get(file.stem, (None,))[0] in (1, METHOD):
        assert outside(file) <= ARRAYS


@every_file
def test_files_are_short(file):
    assert len(file.read_text().splitlines()) <= LONGEST


def test_without_torch():
    """Every file and every public name, in a process where torch cannot be imported."""
    names = [f"jaxpa.{file.stem}" for file in FILES if file.stem not in ("__init__", "__main__")]
    code = f"""
import sys
sys.modules["torch"] = None  # an import of it raises ImportError
import importlib, jaxpa
for name in {names!r}:
    importlib.import_module(name)
assert all(getattr(jaxpa, name) is not None for name in jaxpa.__all__)
assert sys.modules["torch"] is None
print("imported")
"""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stdout.strip()) == (0, "imported"), run.stderr
