"""What is wrong with the words of a command, in a line that names the flag, before they are parsed."""

import typing
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from tyro.conf import Positional

from jaxpa.cli.flags import primitive
from jaxpa.errors import JaxpaError, did_you_mean


def check_words(kind: type[Any], words: Sequence[str]) -> None:
    """Raise JaxpaError for a flag that a command has not, for a value that is none, and for flags that are missing."""
    known, given = flags_of(kind), list(said(words))
    for flag, values in given:
        own = flag.replace("_", "-")
        off = own.removeprefix("no-")
        if own not in known and known.get(off) is not bool:
            raise JaxpaError(f"there is no flag --{flag} here{did_you_mean(flag, known)}")
        if own in known:
            _check_values(flag, known[own], values)
    missing = required(kind) - {flag.replace("_", "-") for flag, _ in given}
    if missing:
        raise JaxpaError(f"{' and '.join(f'--{flag}' for flag in sorted(missing))} must be given: --help explains it")


def said(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Every flag without its dashes, and the words up to the next one."""
    flag, values = None, []
    for word in words:
        if not word.startswith("--"):
            values.append(word)
            continue
        if flag is not None:
            yield flag, values
        name, equals, value = word[2:].partition("=")
        flag, values = name, [value] if equals else []
    if flag is not None:
        yield flag, values


def flags_of(kind: type[Any]) -> dict[str, Any]:
    """The flags of a command, those of its groups among them, and their types."""
    hints, found = typing.get_type_hints(kind), {}
    named = typing.get_type_hints(kind, include_extras=True)
    for each in fields(kind):
        hint = hints[each.name]
        group = isinstance(hint, type) and is_dataclass(hint)
        names = (getattr(said, "name", None) for said in getattr(named[each.name], "__metadata__", ()))
        name = next((name for name in names if isinstance(name, str)), each.name.replace("_", "-"))
        found |= flags_of(hint) if group else {name: hint}
    return found


def required(kind: type[Any]) -> set[str]:
    """The flags without which a command does not run."""
    hints = typing.get_type_hints(kind, include_extras=True)
    needed = [each.name for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING]
    return {name.replace("_", "-") for name in needed if Positional not in getattr(hints[name], "__metadata__", ())}


def _check_values(flag: str, kind: Any, values: list[str]) -> None:
    """Raise JaxpaError for words that are no value of this type."""
    if kind is bool:
        return
    many = typing.get_origin(kind) is tuple and typing.get_args(kind)[1:] == (...,)
    spec = primitive(typing.get_args(kind)[0] if many else kind)
    if not values and not (spec is not None and spec.nargs == "*"):
        raise JaxpaError(f"--{flag} needs a value")
    if spec is None:  # text, or a path
        return
    groups = [values] if spec.nargs == "*" else [[value] for value in (values if many else values[:1])]
    for group in groups:
        try:
            spec.instance_from_str(group)
        except JaxpaError as error:
            named = str(error).startswith((flag, "--"))
            raise JaxpaError(str(error) if named else f"--{flag} {error}") from None
