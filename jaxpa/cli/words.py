"""What is wrong with the words of a command, in a line that names the flag, before they are parsed."""

import itertools
import shlex
import typing
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tyro.conf import Positional, Suppress, UseAppendAction

from jaxpa.cli.flags import primitive
from jaxpa.errors import JaxpaError, did_you_mean


def check_words(kind: type[Any], words: Sequence[str]) -> None:
    """Raise JaxpaError for a flag that a command has not, for a value that is none, and for flags that are missing."""
    known, given = flags_of(kind), list(said(words))
    for flag, values in given:
        own = flag.replace("_", "-")
        off = own.removeprefix("no-")
        if own in unread(kind):
            verb = kind.__name__.removesuffix("Command").lower()
            raise JaxpaError(f"--{own} would have no effect: {verb} does not read it. Leave it out")
        if own not in known and known.get(off) is not bool:
            raise JaxpaError(f"there is no flag --{flag} here{did_you_mean(flag, known)}")
        if own in known:
            _check_values(flag, known[own], values)
    _check_stray(kind, words, given)
    _check_once(kind, [flag.replace("_", "-") for flag, _ in given])
    missing = required(kind) - {flag.replace("_", "-") for flag, _ in given}
    if missing:
        raise JaxpaError(f"{' and '.join(f'--{flag}' for flag in sorted(missing))} must be given: --help explains it")


def _check_stray(kind: type[Any], words: Sequence[str], given: Sequence[tuple[str, list[str]]]) -> None:
    """Raise JaxpaError for words that belong to no flag, and where a command lacks one that it takes without a flag."""
    known, alone, again = flags_of(kind), _alone(kind), _repeatable(kind)
    stray = list(itertools.takewhile(lambda word: not word.startswith("--"), words))
    for flag, values in given:
        own = flag.replace("_", "-")
        most = _most(kind, own)
        over = [] if most is None else values[most:]
        stray += over
        if over and own in again and len(stray) > len(alone):
            raise JaxpaError(f"--{flag} takes one value, and {over[0]!r} is another: repeat the flag for each")
    if len(stray) > len(alone):
        quoted = f", in quotes where it has spaces: --prompt {shlex.quote('a red cat')}" if "prompt" in known else ""
        word = stray[len(alone)]
        raise JaxpaError(f"the word {word!r} belongs to no flag: give every value after its flag{quoted}")
    for missing in filter(_is_needed, alone[len(stray) :]):
        raise JaxpaError(f"{missing.name.upper()} must be given: --help explains it")
    hints = typing.get_type_hints(kind)
    for each, word in zip(alone, stray, strict=False):
        if not word:
            raise JaxpaError(f"{each.name.upper()} is empty: --help explains it")
        if spec := primitive(hints[each.name]):
            _check_value(each.name.upper(), spec, [word])
        if word.startswith("-") and len(word) > 1:
            raise JaxpaError(f"{each.name.upper()} {word!r} would be taken for a flag: write ./{word}")


def _check_once(kind: type[Any], given: Sequence[str]) -> None:
    """Raise JaxpaError for a flag that takes several values at once and is given twice: the last would count alone."""
    again = _repeatable(kind)
    for k, flag in enumerate(given):
        if flag in given[:k] and flag not in again and _most(kind, flag) is None:
            raise JaxpaError(f"--{flag} is given twice: give all its values after one --{flag}")


@cache
def _repeatable(kind: type[Any]) -> set[str]:
    """The flags that may be given several times, each time for one more."""
    hints, found = typing.get_type_hints(kind), set[str]()
    for each in fields(kind):
        hint, several = hints[each.name], _is_marked(kind, each, UseAppendAction)
        if isinstance(hint, type) and is_dataclass(hint):
            own = flags_of(hint).items()
            found |= {flag for flag, inner in own if _reading(inner)[0]} if several else _repeatable(hint)
        elif several:
            found.add(each.name.replace("_", "-"))
    return found


def _most(kind: type[Any], flag: str) -> int | None:
    """How many words a flag of a command takes at most; None: all that follow."""
    hint = flags_of(kind).get(flag, bool)
    if hint is bool:
        return 0
    many, spec = _reading(hint)
    many = many and flag not in _repeatable(kind)
    return None if many or (spec is not None and spec.nargs == "*") else 1


def joined(kind: type[Any], words: Sequence[str]) -> list[str]:
    """The words, those that begin with a dash joined to the flag whose value they are: else they would be flags."""
    out: list[str] = []
    for word in words:
        dashes, flag = len(word) - len(word.lstrip("-")), out[-1] if out else ""
        if dashes == 1 < len(word) and flag.startswith("--") and _most(kind, flag[2:].replace("_", "-")) == 1:
            out[-1] = f"{flag}={word}"
        else:
            out.append(word)
    return out


def _reading(kind: Any) -> tuple[bool, Any]:
    """Whether a flag of this type takes any number of words, and how one is read; None: as it stands."""
    many = typing.get_origin(kind) is tuple and typing.get_args(kind)[1:] == (...,)
    return many, primitive(typing.get_args(kind)[0] if many else kind)


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


@cache
def flags_of(kind: type[Any]) -> dict[str, Any]:
    """The flags of a command, those of its groups among them, and their types."""
    hints, found = typing.get_type_hints(kind), {}
    named = typing.get_type_hints(kind, include_extras=True)
    for each in fields(kind):
        hint = hints[each.name]
        group = isinstance(hint, type) and is_dataclass(hint)
        if each.name in _suppressed(kind):
            continue
        names = (getattr(said, "name", None) for said in getattr(named[each.name], "__metadata__", ()))
        name = next((name for name in names if isinstance(name, str)), each.name.replace("_", "-"))
        found |= flags_of(hint) if group else {name: hint}
    return found


@cache
def unread(kind: type[Any]) -> set[str]:
    """The flags of a command's groups that other commands have and this one does not."""
    groups = [hint for hint in typing.get_type_hints(kind).values() if isinstance(hint, type) and is_dataclass(hint)]
    own = {name.replace("_", "-") for name in _suppressed(kind)}
    return own.union(*map(unread, groups))


@cache
def _suppressed(kind: type[Any]) -> set[str]:
    """The fields that are no flags."""
    return {each.name for each in fields(kind) if _is_marked(kind, each, Suppress)}


@cache
def required(kind: type[Any]) -> set[str]:
    """The flags without which a command does not run."""
    alone = _alone(kind)
    return {each.name.replace("_", "-") for each in fields(kind) if _is_needed(each) and each not in alone}


@cache
def _alone(kind: type[Any]) -> list[Field[Any]]:
    """What a command takes without a flag, in order."""
    return [each for each in fields(kind) if _is_marked(kind, each, Positional)]


def _is_marked(kind: type[Any], each: Field[Any], mark: Any) -> bool:
    return mark in getattr(typing.get_type_hints(kind, include_extras=True)[each.name], "__metadata__", ())


def _is_needed(each: Field[Any]) -> bool:
    return each.default is MISSING and each.default_factory is MISSING


def _check_values(flag: str, kind: Any, values: list[str]) -> None:
    """Raise JaxpaError for words that are no value of this type."""
    if kind is bool:
        return
    if "" in values and Path in (kind, *typing.get_args(kind)):  # else it would be the working directory
        raise JaxpaError(f"--{flag} needs a value, and here it is empty")
    many, spec = _reading(kind)
    if not values and not (spec is not None and spec.nargs == "*"):
        raise JaxpaError(f"--{flag} needs a value")
    if spec is None:  # text, or a path
        return
    groups = [values] if spec.nargs == "*" else [[value] for value in (values if many else values[:1])]
    for group in groups:
        _check_value(f"--{flag}", spec, group)


def _check_value(name: str, spec: Any, words: list[str]) -> None:
    """Raise JaxpaError, which names the flag, for words that are not read as a value."""
    try:
        spec.instance_from_str(words)
    except JaxpaError as error:
        named = str(error).startswith((name.lstrip("-"), "--"))
        raise JaxpaError(str(error) if named else f"{name} {error}") from None
