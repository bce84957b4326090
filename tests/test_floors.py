"""The house: every module of the book and every room has a floor, and imports go down, never up or beside.

Rooms are packages: inside one, a module may import from those that its row names before it.
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
    "arrays box config errors replacing",
    "checks",
    "tokens rope schedule seeds loops solvers partition",
    "layers caching",
    "kernels quantised lowrank",
    "blocks sampling encoders",
    "transformer inversion presets",
    "routing backbones",
    "personalize checkpoint media",
    "adapters",
    "request runs batching",
    "devices",
    "model",
    "attention sampler",
    "pipeline",
    "evaluation batch app __init__",
    "cli",
    "__main__",
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names.split()}
ROOMS = {  # modules in the order in which they build on each other
    "backbones": "tables shapes backbone variants flux registry",
    "encoders": "autoencoder t5 clip vision vocabulary text",
    "checkpoint": "documents files gguf scales hub remote keys parts single fingerprint fit source reading residence "
    "stages load redux convert report",
    "adapters": "spec names read lay report",
    "media": "masks figures images places subjects edits edges",
    "request": "spec taus groups request record code provenance origin prepare",
    "attention": "maps observe",
    "devices": "processes cost memory sharding timing plan known targets hlo programs compiled elsewhere bench",
    "evaluation": "metrics scores evaluate",
    "batch": "table names lock journal recall groups worker engine_ray",
    "app": "picks desk jobs looks parts laying personal editing looking page",
    "cli": "console flags words spell files command plan bench checkpoints picturing pictures invert mask start parse "
    "lines urls signals session batch app replay main",
}
METHOD = {"sampling", "inversion", "presets", "routing", "personalize", "batching"}
NETWORKS = {"partition", "layers", "kernels", "blocks", "transformer", "encoders"}  # the method knows none
PURE = {"arrays", "box", "tokens", "rope", "schedule", "loops", "seeds", "solvers", "caching", "checks", *METHOD}
ARRAYS = {"jax", "numpy", "chex", "jaxtyping"}  # all that these may import from outside
COME_WITH_OTHERS = {"pydantic_core", "annotated_types"}  # with pydantic
MODULES = {"pillow": "PIL", "docstring-parser": "docstring_parser"}  # packages that are imported by another name
LONGEST = 400  # lines

FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(file: Path) -> str:
    """jaxpa/media/images.py -> media.images."""
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts)


every_file = pytest.mark.parametrize("file", FILES, ids=module_of)


def imports(source: str) -> set[str]:
    """Every module that is imported, anywhere in the file: "numpy", "jaxpa.tokens"; "jaxpa" means its __init__."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                found.add("." * node.level + (node.module or ""))
            elif node.module and node.module.split(".")[0] == "jaxpa":
                folder = PACKAGE.joinpath(*node.module.split(".")[1:])
                inside = {
                    a.name for a in node.names if (folder / f"{a.name}.py").exists() or (folder / a.name).is_dir()
                }
                found |= {f"{node.module}.{name}" for name in inside}
                if len(inside) < len(node.names):
                    found.add(node.module)
            elif node.module:
                found.add(node.module)
    return found


def faults(name: str, modules: set[str]) -> list[str]:
    """What a module (`tokens`, `media.images`) may not import, and why."""
    place, _, inner = name.partition(".")
    found = []
    for module in sorted(modules):
        top, _, rest = module.partition(".")
        if not top:
            found.append(f"{module}: imports are absolute")
        if top != "jaxpa":
            continue
        target, _, part = (rest or "__init__").partition(".")
        if target not in FLOOR:
            found.append(f"{module}: it has no floor")
        elif target == place and place in ROOMS:
            order = ROOMS[place].split()
            if inner != "__init__" and order.index(part.split(".")[0]) >= order.index(inner):
                found.append(f"{module}: {inner} comes before it in its room")
        elif FLOOR[target] >= FLOOR[place]:
            found.append(f"{module}: floor {FLOOR[target]} is not below floor {FLOOR[place]}")
        elif place in METHOD and target in NETWORKS:
            found.append(f"{module}: the method knows no network")
    return found


def outside(file: Path) -> set[str]:
    """Names of the packages that a file imports from."""
    tops = {module.split(".")[0] for module in imports(file.read_text()) if not module.startswith(".")}
    return tops - {"jaxpa"} - sys.stdlib_module_names


@pytest.mark.parametrize(("name", "modules", "count"), [
    ("personalize", {"jaxpa.sampling", "jaxpa.tokens", "jax.numpy", "dataclasses"}, 0),
    ("sampling", {"jaxpa.inversion"}, 1),  # above
    ("personalize", {"jaxpa.layers"}, 1),  # a network
    ("encoders.clip", {"jaxpa.encoders.t5"}, 0),
    ("encoders.t5", {"jaxpa.encoders.clip"}, 1),  # later in its room
    ("encoders.t5", {"jaxpa.transformer"}, 1),  # beside
    ("tokens", {"jaxpa.layers", "jaxpa.cli.main"}, 2),  # above
    ("checkpoint.load", {"jaxpa"}, 1),  # the package's face is above
    ("cli.main", {"jaxpa", "jaxpa.pipeline"}, 0),
    ("cli.main", {".pipeline"}, 1),  # relative
    ("cli.main", {"jaxpa.elsewhere"}, 1),
])  # fmt: skip
def test_the_rule_itself(name, modules, count):
    assert len(faults(name, modules)) == count


def test_imports_are_found_wherever_they_stand():
    source = (
        "import os\nfrom jaxpa import tokens, load\nfrom jaxpa.media import images\n"
        "def f():\n  from jaxpa.cli.main import main\n  import jaxpa.encoders.t5 as t"
    )
    assert imports(source) == {
        "os", "jaxpa", "jaxpa.tokens", "jaxpa.media.images", "jaxpa.cli.main", "jaxpa.encoders.t5"
    }  # fmt: skip


def test_everything_has_a_floor():
    assert FILES
    at_home = {f"{room}.{name}" for room, names in ROOMS.items() for name in ("__init__", *names.split())}
    homeless = [
        module for module in map(module_of, FILES) if module not in at_home and (module not in FLOOR or "." in module)
    ]
    assert homeless == [], f"give these modules a place in FLOORS or ROOMS of {Path(__file__).name}"


def test_every_room_is_installed_and_says_what_it_is_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    installed = set(project["tool"]["setuptools"]["packages"])
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["jaxpa"]  # type checkers read our types
    assert (PACKAGE / "py.typed").is_file()
    for room, names in ROOMS.items():
        assert f"jaxpa.{room}" in installed
        text = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text())) or ""
        offered = {word.strip(",") for line in text.splitlines()[2:] for word in line.partition("  ")[0].split()}
        assert offered == set(names.split()), f"jaxpa/{room}/__init__.py does not list the room's modules"


@every_file
def test_imports_go_down(file):
    assert faults(module_of(file), imports(file.read_text())) == []


@every_file
def test_imports_from_outside(file):
    """Run-time packages of pyproject.toml only: no torch, and nothing of weights, examples and tests."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    packages = {re.split(r"[^\w-]", line)[0].lower() for line in project["dependencies"]}
    assert outside(file) <= {MODULES.get(name, name) for name in packages} | COME_WITH_OTHERS
    if module_of(file) in PURE:
        assert outside(file) <= ARRAYS


@every_file
def test_files_are_short(file):
    assert len(file.read_text().splitlines()) <= LONGEST


def test_without_torch():
    """Every module and every public name, in a process where torch cannot be imported."""
    names = [f"jaxpa.{module_of(file)}" for file in FILES if not file.stem.startswith("__")]
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


def test_what_only_its_own_module_uses_has_an_underscore():
    """Functions: whatever another file of the repository names is public, and the rest is not."""
    code = {
        file: file.read_text()
        for name in ("jaxpa", "weights", "tests", "examples")
        for file in (ROOT / name).rglob("*.py")
    }
    pages = [
        file.read_text() for name in (".", "docs", "examples", "weights") for file in (ROOT / name).glob("**/*.md")
    ]
    named = {file: set(re.findall(r"\w+", text)) for file, text in code.items()}
    public = set(re.findall(r"\w+", " ".join(pages)))
    found = []
    for file in FILES:
        elsewhere = public.union(*(words for other, words in named.items() if other != file))
        functions = [node.name for node in ast.parse(code[file]).body if isinstance(node, ast.FunctionDef)]
        found += [(file.name, name) for name in functions if not name.startswith("_") and name not in elsewhere]
    assert found == []
