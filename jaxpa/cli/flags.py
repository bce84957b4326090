"""The grammar of flags: how the types of a request's fields are read from words and shown as words."""

import math
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from jaxpa.adapters.spec import Lora, parse_lora
from jaxpa.errors import JaxpaError, did_you_mean, quoted
from jaxpa.media.places import Place, parse_place, shortest, show_place
from jaxpa.media.subjects import Subject
from jaxpa.presets import BlockTau
from jaxpa.request.groups import Seeds, Unset
from jaxpa.request.taus import parse_block_tau, parse_tau, show_block_tau, show_tau
from jaxpa.schedule import Steps

# Flags of a subject, and whether a value follows.
GROUP = {"mask": True, "word": True, "at": True, "caption": True, "flip": False, "stretch": False}
SUBJECT = "IMAGE [--mask MASK | --word WORD] [--at X,Y | L,T,R,B] [--caption TEXT] [--flip] [--stretch]"


def group_subjects(command: str, argv: Sequence[str]) -> list[str]:
    """`--subject I --mask M --at X,Y` -> `--subject I mask=M at=X,Y`: flags after a subject belong to it.

    Raises JaxpaError for such a flag that stands elsewhere, and for one without its value.
    """
    if command != "personalize":  # the flags of these names are other commands' own
        return list(argv)
    out: list[str] = []
    inside, rest = False, list(argv)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--")
        if flag.startswith("--") and name in GROUP:
            if not inside:
                raise JaxpaError(f"--{name} belongs directly after its --subject IMAGE")
            if GROUP[name] and not equals:
                if not rest:
                    raise JaxpaError(f"--{name} of a --subject needs a value")
                value = rest.pop(0)
            if equals and not GROUP[name]:
                raise JaxpaError(f"--{name} takes no value, and here it has {value!r}")
            out.append(f"{name}={value}")
            continue
        if word.startswith("--"):
            inside = flag == "--subject"
            out += [flag, value] if inside and equals else [word]
            continue
        out.append(word)
    return out


def parse_subject(words: Sequence[str]) -> Subject:
    """The words of one group: the picture, then name=value."""
    if not words:
        raise JaxpaError(f"--subject needs a picture: --subject {SUBJECT}")
    image, values, at = words[0], {}, None
    if image.startswith("-"):
        raise JaxpaError(f"--subject {image} would be taken for a flag: write ./{image}")
    for word in words[1:]:
        name, equals, value = word.partition("=")
        if name not in GROUP or not equals:
            raise JaxpaError(f"{word!r} after --subject {image}: a subject is --subject {SUBJECT}")
        if name in values:
            raise JaxpaError(f"--subject {image} has --{name} twice: leave one out")
        values[name] = value
    if "at" in values:
        try:
            at = parse_place(values["at"])
        except JaxpaError as error:
            raise JaxpaError(f"--at {error}") from None
    if "mask" in values and "word" in values:
        raise JaxpaError(f"--subject {image} has both --mask and --word, which finds a mask: give one of them")
    return Subject(
        image,
        mask=values.get("mask"),
        at=at,
        flip="flip" in values,
        caption=values.get("caption", ""),
        word=values.get("word", ""),
        stretch="stretch" in values,
    )


def _parse_pad(text: str) -> tuple[int, int, int, int]:
    """`TOP,RIGHT,BOTTOM,LEFT` in pixels; one number for all sides."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 4):
        raise JaxpaError(f"{text!r}: give TOP,RIGHT,BOTTOM,LEFT in pixels, or one number for all sides")
    return numbers * (4 // len(numbers))  # type: ignore[return-value]


def _parse_times(words: Sequence[str]) -> tuple[float, ...]:
    """`1,0.8,0.4`: flow times."""
    return tuple(_one(float, part) for part in words[0].split(","))


def _parse_seeds(words: Sequence[str]) -> Seeds:
    """One seed, or a seed for each picture."""
    try:
        numbers = tuple(int(word) for word in words)
    except ValueError:
        raise JaxpaError(f"{quoted(' '.join(words))}: give whole numbers") from None
    if not numbers:
        raise JaxpaError("needs a number")
    return numbers[0] if len(numbers) == 1 else numbers


def _show_seeds(seed: Seeds) -> list[str]:
    return [str(each) for each in ([seed] if isinstance(seed, int) else seed)]


class Pad(tuple[int, int, int, int]):
    """The sides of an outpainting, as one word."""


class Every(int):
    """A number of steps: `5`, or `every 5`."""


def parse_every(words: Sequence[str]) -> Every:
    """Raises JaxpaError for anything else."""
    number = words[-1] if words else ""
    if len(words) - (words[:1] == ["every"]) != 1 or not (number.isascii() and number.isdecimal() and int(number)):
        raise JaxpaError(f"{' '.join(words)!r}: give a number of steps, such as 5")
    return Every(number)


def _parse_blocks(words: Sequence[str]) -> tuple[int, int] | None:
    """`10-20`: blocks 10 to 20, both included; `none`: all. Raises JaxpaError."""
    if words[0] == "none":
        return None
    first, dash, last = words[0].partition("-")
    if not (dash and first.isdecimal() and last.isdecimal()):
        raise JaxpaError(f"{words[0]!r} is no range of blocks: give the first and the last, such as 10-20, or none")
    return int(first), int(last)


def _show_blocks(blocks: Any) -> list[str]:
    return ["none" if blocks is None else "the preset's" if blocks is Unset.UNSET else f"{blocks[0]}-{blocks[1]}"]


def _parse_block_taus(words: Sequence[str]) -> tuple[BlockTau, ...]:
    """`0-9=0.8 10-20=40%`: blocks with a tau of their own; `none`: there are none. Raises JaxpaError."""
    return () if list(words) == ["none"] else tuple(map(parse_block_tau, words))


def _show_block_taus(taus: Any) -> list[str]:
    return ["the preset's"] if taus is Unset.UNSET else [show_block_tau(own) for own in taus] or ["none"]


def _spec(
    metavar: str,
    parse: Callable[[list[str]], Any],
    show: Callable[[Any], list[str]] = lambda value: [str(value)],
    nargs: int | Literal["*"] = 1,
    choices: Sequence[str] = (),
) -> PrimitiveConstructorSpec[Any]:
    return PrimitiveConstructorSpec(
        nargs=nargs,
        metavar=metavar,
        instance_from_str=parse,
        is_instance=lambda _: True,
        str_from_instance=show,
        choices=tuple(choices) or None,  # for shells that complete them
    )


def _one(kind: type, word: str) -> Any:
    try:
        value = kind(word)
        if kind is float and not math.isfinite(value):
            raise ValueError
    except ValueError:
        raise JaxpaError(f"{quoted(word)} is not {'a whole number' if kind is int else 'a number'}") from None
    return value


NAMES: dict[type, str] = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}


def _choice(
    members: Sequence[Any], off: str | None, values: dict[str, Any] | None = None
) -> PrimitiveConstructorSpec[Any] | None:
    """A literal or a scalar that may say nothing; `off` is the word for None, where None is a choice.

    values: what the words of a literal mean, where they are not meant themselves.
    """
    words = [str(each) for member in members for each in typing.get_args(member)]
    scalar = next((member for member in members if member in (int, float, str, Path)), None)
    if not words and scalar is None:
        return None
    known = [*words, *([off] if off else [])]
    metavar = "{" + ",".join(known) + "}" if words else NAMES[scalar]  # type: ignore[index]
    metavar += f"|{off}" if off and not words else ""

    def parse(given: list[str]) -> Any:
        word = given[0]
        if word == off:
            return None
        if words and word not in words:
            raise JaxpaError(f"{word!r} is not one of {', '.join(known)}{did_you_mean(word, known)}")
        if words:
            return word if values is None else values[word]
        return _one(scalar, word)  # type: ignore[arg-type]

    def show(value: Any) -> list[str]:
        if value is None or value is Unset.UNSET:
            return [off or "auto"] if value is None else ["the preset's"]
        meant = {meaning: word for word, meaning in (values or {}).items()}
        return [meant.get(value, str(value))]

    return _spec(metavar, parse, show, choices=known if words else ())


REGISTRY = ConstructorRegistry()


@REGISTRY.primitive_rule
def _rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    return primitive(info.type)


def primitive(kind: Any) -> PrimitiveConstructorSpec[Any] | None:
    """How a value of this type is read; None: as the words say it."""
    if kind in (int, float):
        return _spec(NAMES[kind], lambda words: _one(kind, words[0]))
    if kind is Subject:
        return _spec(SUBJECT, parse_subject, lambda value: [value.name], "*")
    if kind is Lora:
        return _spec("FILE[:SCALE]", lambda words: parse_lora(words[0]))
    if kind is Pad:
        return _spec("T,R,B,L", lambda words: Pad(_parse_pad(words[0])), lambda value: [",".join(map(str, value))])
    if kind == Place:
        return _spec("X,Y|L,T,R,B", lambda words: parse_place(words[0]), lambda value: [show_place(value)])
    if kind == Seeds:
        return _spec("INT [INT ...]", _parse_seeds, _show_seeds, "*")
    if typing.get_origin(kind) is Literal:
        return _choice([kind], None)
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return None
    members = [member for member in typing.get_args(kind) if member is not Unset]
    if set(members) == {float, Steps}:
        return _spec("T|P%", lambda words: parse_tau(words[0]), lambda value: [show_tau(value)])
    plain = [member for member in members if member is not type(None)]
    if plain == [Every]:
        return _spec("[every] N", parse_every, lambda value: ["none" if value is None else str(value)], "*")
    if plain == [bool]:
        return _choice([Literal["yes", "no"]], None, {"yes": True, "no": False})
    if plain == [tuple[float, ...]]:
        return _spec("T,T,...", _parse_times, lambda value: [",".join(map(shortest, value)) if value else "auto"])
    if plain == [tuple[int, int]]:
        return _spec("FIRST-LAST|none", _parse_blocks, _show_blocks)
    if plain and typing.get_origin(plain[0]) is tuple:
        return _spec("FIRST-LAST=T ...|none", _parse_block_taus, _show_block_taus, "*")
    off = None
    if len(plain) < len(members):
        unset = len(members) < len(typing.get_args(kind))
        off = ("same" if float in plain else "none") if unset or str in plain or Path in plain else "auto"
    return _choice(
        [member for member in plain if typing.get_origin(member) is Literal or isinstance(member, type)], off
    )
