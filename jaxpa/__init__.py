"""FLUX.1 in JAX, and Personalize Anything on it: `jaxpa.load("mini")`, `jaxpa.Subject`, or the `jaxpa` command."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxpa.errors import CheckpointError, JaxpaError
    from jaxpa.media.subjects import Subject
    from jaxpa.pipeline import Pipeline, load
    from jaxpa.schedule import Steps

_HOME = {
    "CheckpointError": "errors",
    "JaxpaError": "errors",
    "Pipeline": "pipeline",
    "Steps": "schedule",
    "Subject": "media.subjects",
    "load": "pipeline",
}
__all__ = ["CheckpointError", "JaxpaError", "Pipeline", "Steps", "Subject", "load"]


def __getattr__(name: str) -> Any:
    """Public names on first use: `jaxpa --help` and `import jaxpa.tokens` need not import the networks."""
    if name not in _HOME:
        raise AttributeError(f"module 'jaxpa' has no attribute {name!r}")
    return getattr(import_module(f"jaxpa.{_HOME[name]}"), name)
