"""The site of the course and the API: `python -m sphinx -W docs build/site`, which needs the extra `docs`."""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent), str(DOCS.parent / "examples")]

import pages  # noqa: E402

import jaxpa.arrays  # noqa: E402


class Array:
    """Stands for JAX's array in signatures, so that they read as the source does: before any other module is read."""


jaxpa.arrays.Array, jaxpa.arrays.Scalar, jaxpa.arrays.Index = Array, Array | float, Array | int

project = "jaxpa"
author = "the authors of jaxpa"
extensions = ["sphinx.ext.autodoc", "myst_parser"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
suppress_warnings = [
    "config.cache",  # of functions below
    "ref.python",  # two modules may have a class of one name; the link goes to either
]

highlight_language = "text"
add_module_names = False

html_theme = "furo"
html_title = "jaxpa"
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}

default_role = "py:obj"  # `name` in a docstring is code, and a link where it names something of the package
autodoc_default_options = {"members": True, "member-order": "bysource", "exclude-members": "__init__,__new__"}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100


def setup(app):
    app.connect("builder-inited", pages.write)
    app.connect("autodoc-process-docstring", pages.as_rst)
    app.connect("missing-reference", pages.find)
