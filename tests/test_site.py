"""The site's own pages and its reading of docstrings; `.ci/run` builds the whole of it without a warning."""

import ast
import io
import sys
from pathlib import Path

import pytest

pytest.importorskip("jupytext", reason="Jupytext and Sphinx, of the extra docs, make the site")
core = pytest.importorskip("docutils.core", reason="Sphinx, of the extra docs, makes the site")

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "jaxpa").rglob("*.py"))
sys.path[:0] = [str(ROOT / "docs"), str(ROOT / "examples")]

import pages  # noqa: E402


def as_rst(text: str) -> str:
    lines = text.splitlines()
    pages.as_rst(None, "function", "name", None, None, lines)
    return "\n".join(lines).strip()


@pytest.mark.parametrize(("text", "made"), [
    ("x * y and *args", r"x \* y and \*args"),
    ("`tokens.Routing` of a_ and b_c", r"`tokens.Routing` of a\_ and b_c"),
    ("`Routing` by `bind(model)`", "`Routing` by ``bind(model)``"),
    ("a    one\nbc   two", "::\n\n    a    one\n    bc   two"),
    ("So:\n\n    x = y\n\nand on.", "So:\n\n::\n\n        x = y\n\nand on."),
    ("Alias for field number 3", ""),
])  # fmt: skip
def test_plain_text_becomes_markup(text, made):
    assert as_rst(text) == made


def docstrings(file: Path) -> list[str]:
    nodes = ast.walk(ast.parse(file.read_text()))
    kinds = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
    return [text for node in nodes if isinstance(node, kinds) and (text := ast.get_docstring(node))]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT / "jaxpa")))
def test_docstrings_render_without_a_warning(file):
    said = io.StringIO()
    text = "\n\n".join(as_rst(each) for each in docstrings(file))
    core.publish_doctree(f".. default-role:: literal\n\n{text}\n", settings_overrides={"warning_stream": said})
    assert said.getvalue() == ""


def test_every_module_and_every_lesson_has_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "DOCS", tmp_path)
    pages.write()
    there = [line.split()[-1] for page in (tmp_path / "api").glob("*.md") for line in page.read_text().splitlines()
             if line.startswith(".. automodule::")]  # fmt: skip
    parts = [file.relative_to(ROOT).with_suffix("").parts for file in FILES if file.stem != "__main__"]
    assert sorted(there) == sorted(".".join(p[:-1] if p[-1] == "__init__" else p) for p in parts)
    listed = (tmp_path / "api" / "index.md").read_text().split()
    assert {page.stem for page in (tmp_path / "api").glob("jaxpa*.md")} <= set(listed)
    course = (tmp_path / "course" / "index.md").read_text().split()
    for lesson in pages.LESSONS:
        assert lesson.stem in course
        page = (tmp_path / "course" / f"{lesson.stem}.md").read_text()
        assert page.startswith(f"# {int(lesson.stem[:2])}. ")
        assert page.count("```") % 2 == 0
        assert (tmp_path / "course" / f"{lesson.stem}.ipynb").is_file()
