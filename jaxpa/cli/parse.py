"""From words to commands, and the help, whose defaults are those of the model that is named."""

import contextlib
import inspect
import typing
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import tyro
from docstring_parser import parse_from_object

from jaxpa.cli.command import spec_of
from jaxpa.cli.flags import REGISTRY, group_subjects
from jaxpa.cli.pictures import KeepingCommand
from jaxpa.cli.start import with_settings
from jaxpa.cli.words import check_words, joined
from jaxpa.errors import JaxpaError
from jaxpa.request.groups import Checkpoint, Method, Sampling
from jaxpa.request.request import EDITS
from jaxpa.request.spec import Spec

Parsed = TypeVar("Parsed")
SYNONYMS = {"--variations": "--num-images"}


def parse_command(kind: type[Parsed], name: str, words: Sequence[str], prog: str, folder: Path = Path()) -> Parsed:
    """The command of this kind that the words are; folder: where the picture of a --from is.

    Raises JaxpaError, or SystemExit after help or a usage error.
    """
    extra: dict[str, Any] = {}
    if {"--help", "-h"} & set(words):
        args = ["--help"]  # whatever else is wrong with the words
        join_lines(kind)
        if (default := shown(kind, words)) is not None:
            extra = {"default": default, "description": described(kind, default.checkpoint)}
    else:
        grouped = with_settings(kind, name, [_synonym(word) for word in group_subjects(name, words)], folder)
        check_words(kind, grouped)
        args = joined(kind, grouped)
    return tyro.cli(kind, prog=prog, args=args, registry=REGISTRY, **extra)


@cache  # the lines of a batch are of a few kinds
def join_lines(kind: type[Any]) -> None:
    """Let the help of every field be one paragraph: tyro would break its lines where the source does.

    It also spares tyro, which forgets all between two commands, from reading the source of every class again.
    """
    texts = {
        each.arg_name: each.description for base in kind.__mro__[-2::-1] for each in parse_from_object(base).params
    }
    for each in fields(kind):
        text = texts.get(each.name) or ""
        if isinstance(group := each.default_factory, type) and is_dataclass(group):
            join_lines(group)
            text = text or (inspect.getdoc(group) or "").partition("\n\n")[0]
        each.metadata = MappingProxyType({**each.metadata, "help": " ".join(text.split())})


def _synonym(word: str) -> str:
    """A flag by its first name."""
    flag, equals, value = word.partition("=")
    return f"{SYNONYMS.get(flag, flag)}{equals}{value}"


def shown(kind: type[Any], words: Sequence[str]) -> Any:
    """An instance for the help: every default is what the named model and preset would take."""
    said = {each.name: _value_of(words, each.name) for each in fields(Checkpoint)}
    given: dict[str, Any] = {name: value for name, value in said.items() if value is not None}
    groups = typing.get_type_hints(kind)
    if "checkpoint" not in groups:
        return None
    checkpoint = groups["checkpoint"]()
    values: dict[str, Any] = {}
    with contextlib.suppress(JaxpaError):  # a model that cannot be read: the help stays without its values
        checkpoint = groups["checkpoint"](**given)
        spec = spec_of(_source_of(checkpoint))
        values |= defaults(kind, spec, _value_of(words, "preset"))
    unsaid = {each.name for each in fields(kind) if each.default is None or each.default is MISSING}
    required = {each.name for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING}
    known = {key: value for key, value in values.items() if key in unsaid}
    return kind(**dict.fromkeys(required, tyro.MISSING), **known, checkpoint=checkpoint)


def described(kind: type[Any], checkpoint: Checkpoint) -> str:
    """What a command does, and the words that its model knows, if the model lists them."""
    lines = [inspect.getdoc(kind) or ""]
    with contextlib.suppress(JaxpaError):
        words = spec_of(_source_of(checkpoint)).settings.words
        if words and hasattr(kind, "prompt"):
            table = [f"  {what}: {', '.join(known)}" for what, known in words.items()]
            lines.append("\n".join([f"All words that {checkpoint.model} knows:", *table]))
    return "\n\n".join(lines)


def _source_of(checkpoint: Checkpoint) -> Any:
    from jaxpa.checkpoint.source import resolve

    return resolve(checkpoint.model, checkpoint.components, download=False, variant=checkpoint.variant)


def _value_of(words: Sequence[str], flag: str) -> str | None:
    """The value that a flag has among the words."""
    for k, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == f"--{flag}":
            return value if equals else next(iter(words[k + 1 : k + 2]), None)
    return None


def defaults(kind: type[Any], spec: Spec, preset: str | None) -> dict[str, Any]:
    """What a checkpoint takes where nothing is said, by the fields of a command."""
    settings = spec.settings
    of_picture = any(each.name == "image" and each.default is MISSING for each in fields(kind))
    size: dict[str, Any] = {} if of_picture else {"height": settings.size, "width": settings.size}
    groups = typing.get_type_hints(kind)  # a command may have some of their flags alone
    chosen = Method(preset=preset).switches(settings.preset)  # type: ignore[arg-type]
    if issubclass(kind, KeepingCommand):
        chosen = replace(chosen, **EDITS)
    own = {each.name for each in fields(Method)} & {each.name for each in fields(type(chosen))} - {"tau"}
    tau = {"InpaintCommand": chosen.inpaint_tau, "OutpaintCommand": chosen.outpaint_tau}.get(kind.__name__, chosen.tau)
    said = {name: getattr(chosen, name) for name in own} | {"preset": preset or settings.preset, "tau": (tau,)}
    guidance = spec.guidance(None, with_references="method" in groups)
    return {
        "sampling": groups.get("sampling", Sampling)(steps=settings.steps, guidance=guidance, **size),
        "method": groups.get("method", Method)(**said),
        "steps": settings.steps,
        "coverage": chosen.coverage,
        "text_tokens": settings.max_length,
        **size,
    }
