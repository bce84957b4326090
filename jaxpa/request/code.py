"""A request as the lines of Python that ask for the same."""

import os
from typing import Any

from jaxpa.errors import JaxpaError
from jaxpa.media.subjects import Subject
from jaxpa.presets import BlockTau
from jaxpa.request.groups import Checkpoint
from jaxpa.request.record import said
from jaxpa.request.request import GROUPS, Request
from jaxpa.request.taus import show_block_tau
from jaxpa.schedule import Steps

LOADED = {"keep_resident": "resident", "lora": "loras", "keep_lora": "keep_loras"}  # names of `load`, of the flags
WIDTH = 100  # columns of a line


def python_call(request: Request, checkpoint: Checkpoint, out: str) -> str:
    """Lines of Python that load a checkpoint, make the pictures of a request, and save the first one.

    Raises JaxpaError if a picture, a mask or an embedding is not a file.
    """
    lines = ["import jaxpa", "", f"pipe = {_load(checkpoint)}"]
    words = {name: value for name, value in said(request).items() if name not in GROUPS}
    for name in GROUPS:
        if (group := getattr(request, name)) is not None:
            words |= said(group)
    prompt = words.pop("prompt", "")
    if "embedding" in words:
        lines.append(f"prompt = TextEmbedding.load({_show(words.pop('embedding'))})")
        lines.insert(1, "from jaxpa.encoders.text import TextEmbedding")
        first = ["prompt"]
    else:
        first = [_show(prompt)]
    if request.verb == "personalize":
        subjects = words.pop("subjects", ())
        names = ["subject"] if len(subjects) == 1 else [f"subject_{k + 1}" for k in range(len(subjects))]
        lines += [f"{name} = {_show(subject)}" for name, subject in zip(names, subjects, strict=True)]
        first.append(f"[{', '.join(names)}]")
        if "places" in words:
            words["at"] = list(words.pop("places"))
    elif request.verb == "edit":
        first.insert(0, _show(words.pop("picture")))
    elif request.verb == "inpaint":
        first = [_show(words.pop("image")), _show(words.pop("mask")), *first]
    elif request.verb == "outpaint":
        first = [_show(words.pop("image")), *first, _show(words.pop("pad"))]
    if "tau" in words:
        words["tau"] = words["tau"][0] if len(words["tau"]) == 1 else list(words["tau"])
    call = _call(f"images = pipe.{request.verb}", first, words)
    return "\n".join([*lines, call, f"images[0].save({out!r})", ""])


def _load(checkpoint: Checkpoint) -> str:
    words = said(checkpoint)
    if "lora" in words:
        words["lora"] = [(lora.file, lora.scale) for lora in words["lora"]]
    return _call(
        "jaxpa.load", [_show(checkpoint.model)], {LOADED.get(k, k): v for k, v in words.items() if k != "model"}
    )


def _call(function: str, first: list[str], words: dict[str, Any]) -> str:
    """A call on one line, or with an argument a line where that is too long."""
    arguments = [*first, *(f"{name}={_show(value)}" for name, value in words.items())]
    line = f"{function}({', '.join(arguments)})"
    return line if len(line) <= WIDTH else "\n".join([f"{function}(", *(f"    {each}," for each in arguments), ")"])


def _show(value: Any) -> str:
    """A value as Python writes it."""
    if isinstance(value, Subject):
        return _call("jaxpa.Subject", [_show(value.image)], {k: v for k, v in said(value).items() if k != "image"})
    if isinstance(value, Steps):
        return f"jaxpa.Steps({value.share!r})"
    if isinstance(value, BlockTau):
        return repr(show_block_tau(value))
    if isinstance(value, os.PathLike):
        return repr(os.fspath(value))
    if isinstance(value, list):
        return f"[{', '.join(map(_show, value))}]"
    if isinstance(value, tuple):  # a Box too
        return f"({', '.join(map(_show, value))}{',' * (len(value) == 1)})"
    if isinstance(value, str | int | float | None):
        return repr(value)
    raise JaxpaError(f"{type(value).__name__} is not a file: save it, and name the file instead")
