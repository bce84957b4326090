"""A request as the words of the command that asks for the same: what the page and a person would type."""

import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxpa.adapters.spec import Lora
from jaxpa.cli.flags import GROUP, primitive
from jaxpa.errors import JaxpaError
from jaxpa.media.places import show_place
from jaxpa.media.subjects import Subject
from jaxpa.presets import Preset
from jaxpa.request.groups import Checkpoint, Editing
from jaxpa.request.record import said
from jaxpa.request.request import GROUPS, Request


def words_of(request: Request, checkpoint: Checkpoint, out: str) -> list[str]:
    """The command's name and its flags, such as `group_subjects` and the parser read them back.

    Raises JaxpaError for what no flag says: pictures in memory, several prompts, a preset of one's own.
    """
    if isinstance(request.prompt, tuple):
        raise JaxpaError("a command takes one prompt: ask for each picture by itself")
    words = [request.verb, *_group(checkpoint)]
    for name, value in said(request).items():
        if name == "subjects":
            words += [word for subject in value for word in _subject(subject)]
        elif name == "scene":
            words += _scene(value)
        elif name == "places":
            words += [word for place in value for word in flag("place", [show_place(place)])]
        elif name == "following" and value.picture is not None:
            words += flag("image", [_text(value.picture)])
        elif name in GROUPS:
            words += _group(value)
        else:
            words += flag(name, [_text(value)])
    return [*words, *flag("out", [out])]


def _group(group: Any) -> Iterator[str]:
    """The flags of what a group says."""
    hints = typing.get_type_hints(type(group))
    for name, value in said(group).items():
        kind = hints[name]
        if isinstance(value, Preset):
            raise JaxpaError(f"no flag says {value!r}: name a preset, and the switches that differ from it")
        if isinstance(group, Editing) and name == "pad":
            yield from flag(name, [",".join(map(str, value))])
        elif kind is bool:
            yield f"--{name.replace('_', '-')}"
        elif name == "lora":
            for each in value:
                yield from flag(name, _shown(Lora, each))
        elif name == "tau":
            yield f"--{name}"
            yield from (word for each in value for word in _shown(typing.get_args(kind)[0], each))
        elif primitive(kind) is None:
            yield from flag(name, [_text(value)])
        else:
            yield from flag(name, _shown(kind, value))


def _shown(kind: Any, value: Any) -> list[str]:
    spec = primitive(kind)
    assert spec is not None
    return spec.str_from_instance(value)


def flag(name: str, values: list[str]) -> list[str]:
    """`--name value`; with an equals sign where the value would be taken for a flag."""
    word = f"--{name.replace('_', '-')}"
    return [f"{word}={values[0]}"] if len(values) == 1 and values[0].startswith("-") else [word, *values]


def _subject(subject: Subject) -> list[str]:
    image = _text(subject.image)
    words = ["--subject", f"./{image}" if image.startswith("-") else image]  # the words that follow belong to it
    for name, value in said(subject).items():
        if name not in GROUP:
            continue
        if not GROUP[name]:
            words.append(f"--{name}")
        elif name == "at":
            words += flag("at", [show_place(value)])
        else:
            words += flag(name, [_text(value)])
    return words


def _scene(scene: Subject) -> list[str]:
    if more := said(scene).keys() - {"image"}:
        raise JaxpaError(f"--scene takes a picture alone: no flag says its {sorted(more)[0]}")
    return flag("scene", [_text(scene.image)])


def _text(value: Any) -> str:
    if not isinstance(value, str | Path):
        raise JaxpaError(f"{type(value).__name__} is not a file: save it, and name the file instead")
    return str(value)
