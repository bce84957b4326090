"""Write the course as notebooks, beside its scripts or into a folder: `python examples/make_notebooks.py [FOLDER]`.

A lesson is a script in cells (`# %%`), which most editors run cell by cell as it stands. A notebook imports `_show.py`,
so it runs in this folder. Needs Jupytext, of the extra `docs`; the notebooks are not kept in the repository.
"""

import re
import sys
from pathlib import Path
from typing import Any

import jupytext

HERE = Path(__file__).parent
LESSONS = sorted(HERE.glob("[0-9][0-9]_*.py"))


def read(lesson: Path) -> Any:
    """A lesson as a notebook, without the remarks that are for the type checker."""
    notebook: Any = jupytext.read(lesson)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for k, cell in enumerate(notebook.cells):
        cell["id"] = f"{lesson.stem[:2]}-{k:02d}"  # Jupytext's are random
        cell["source"] = re.sub(r"  # type: ignore(\[[\w-]+\])?", "", cell["source"])
    return notebook


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for lesson in LESSONS:
        jupytext.write(read(lesson), folder / f"{lesson.stem}.ipynb")
    print(f"wrote {len(LESSONS)} notebooks into {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
