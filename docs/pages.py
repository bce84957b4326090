"""The pages that are made of other files, and how docstrings are read.

course/ has a page and a notebook of every lesson in examples/, api/ a page of every module. Neither is kept.
"""

import ast
import re
import shutil
from itertools import groupby
from pathlib import Path

import jupytext
from make_notebooks import LESSONS, read

DOCS = Path(__file__).parent
ROOT = DOCS.parent
PACKAGE, EXAMPLES = ROOT / "jaxpa", ROOT / "examples"


def write(app=None):
    for folder in ("course", "api"):
        shutil.rmtree(DOCS / folder, ignore_errors=True)
        (DOCS / folder).mkdir()
    write_course()
    write_api()


# The course -------------------------------------------------------------------------------------------------


def write_course():
    entries = []
    for lesson in LESSONS:
        notebook = read(lesson)
        picture = f"{lesson.stem.replace('_', '-')}.png"
        shutil.copy(EXAMPLES / "gallery" / picture, DOCS / "course" / picture)
        jupytext.write(notebook, DOCS / "course" / f"{lesson.stem}.ipynb", version=4)
        cells = [as_markdown(cell) for cell in notebook.cells]
        first = re.sub(r"\n    python examples/\S+\n?", "\n", cells[0] + "\n")
        note = f"{{download}}`Notebook <{lesson.stem}.ipynb>`, to be run in the folder `examples` of the repository."
        shown = f"![What the lesson draws]({picture})"
        text = "\n\n".join([first.rstrip(), note, *cells[1:-1], shown, cells[-1]])
        (DOCS / "course" / f"{lesson.stem}.md").write_text(text + "\n")
        entries.append(lesson.stem)
    shutil.copy(EXAMPLES / "glossary.md", DOCS / "course" / "glossary.md")
    listed = (EXAMPLES / "README.md").read_text()
    text = listed[: listed.index("\n## ")].replace("](gallery)", "](https://example.invalid)")
    text = re.sub(r"\[([^]]+)\]\(https://example\.invalid\)", r"`examples/\1`", text)
    (DOCS / "course" / "index.md").write_text(f"{text}\n{toctree(*entries, 'glossary')}\n")


def toctree(*entries, how=":maxdepth: 1"):
    return "\n".join(["```{toctree}", how, "", *entries, "```"])


def as_markdown(cell):
    if cell.cell_type == "markdown":
        return cell.source
    return f"```python\n{cell.source}\n```"


# The API ----------------------------------------------------------------------------------------------------


def write_api():
    """A page for every module of the book and for every room."""
    flat = {file.stem for file in PACKAGE.glob("[!_]*.py")}
    rooms = sorted(file.parent.name for file in PACKAGE.glob("*/__init__.py"))
    readme = (ROOT / "README.md").read_text()
    book = re.findall(
        r"`(\w+)`", readme.partition("The book, in reading order:")[2].partition("The folders around it")[0]
    )
    sections = {"The book, in reading order": book, "Beside it": sorted(flat - set(book)), "Rooms": rooms}
    for name in ("", *flat):
        write_page(f"jaxpa.{name}".rstrip("."), [])
    for room in rooms:
        write_page(f"jaxpa.{room}", [f"jaxpa.{room}.{module}" for module in modules(room)])
    toctrees = [f"## {title}\n\n" + toctree(*(f"jaxpa.{name}" for name in names)) for title, names in sections.items()]
    text = "\n\n".join(
        ["# API", "`import jaxpa` has `load`, `Pipeline`, `Subject`, `Steps` and the errors.", *toctrees]
    )
    (DOCS / "api" / "index.md").write_text(f"{text}\n\n" + toctree("jaxpa", how=":hidden:") + "\n")


def modules(room):
    """The modules of a room in the order in which its docstring names them."""
    text = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text())) or ""
    named = [word.strip(",") for line in text.splitlines()[2:] for word in line.partition("  ")[0].split()]
    there = {file.stem for file in (PACKAGE / room).glob("[!_]*.py")}
    return [name for name in named if name in there] + sorted(there - set(named))


def write_page(name, parts):
    """A module, and the modules in it."""
    text = f"# {name}\n\n" + automodule(name)
    text += "".join(f"\n## {part}\n\n{automodule(part)}" for part in parts)
    (DOCS / "api" / f"{name}.md").write_text(text)


def automodule(name):
    return f"```{{eval-rst}}\n.. automodule:: {name}\n```\n"


# Docstrings -------------------------------------------------------------------------------------------------


def as_rst(app, what, name, obj, options, lines):
    """Docstrings are plain text: `code` in backticks, lists with hyphens, and tables and equations as they stand."""
    if lines and lines[0].startswith("Alias for field number"):
        lines[:] = []
    paragraphs = [list(each) for full, each in groupby(lines, lambda line: bool(line.strip())) if full]
    made = []
    for each in paragraphs:
        if any(re.match(r" |\w.*\S {2,}\S", line) for line in each):
            made += ["::", "", *(f"    {line}" for line in each), ""]
        else:
            made += [*(escaped(line) for line in each), ""]
    lines[:] = made


def escaped(line):
    """Names of the package become links, other code is literal, and what reStructuredText would read is escaped."""
    parts = re.split(r"(`[^`]+`)", line)
    for k, part in enumerate(parts):
        if not k % 2:
            parts[k] = re.sub(r"([*|\\]|_(?!\w))", r"\\\1", part)
        elif not re.fullmatch(r"`(?:[A-Z]\w*|\w+(?:\.\w+)+)`", part):
            parts[k] = f"`{part}`"
    return "".join(parts)


def find(app, env, node, contnode):
    """`tokens.Routing` in a docstring is `jaxpa.tokens.Routing`."""
    target = node.get("reftarget", "")
    domain = env.get_domain("py")
    if node.get("refdomain") != "py" or f"jaxpa.{target}" not in domain.objects:
        return None
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", f"jaxpa.{target}", node, contnode)
