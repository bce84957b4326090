"""What a file asks for, line by line: commands as one types them, JSON objects, or the rows of a CSV table.

A JSON object and a CSV row have the names of `Request` and its groups, with `out`, `figure` and those of `Checkpoint`
beside them. A group's fields may stand at the top (`seed`), in a CSV header with dots (`subjects.0.image`). A LoRA is
`FILE:SCALE`, as its flag has it, or an object.
"""

import csv
import io
import json
import os
import shlex
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from jaxpa.adapters.spec import parse_lora
from jaxpa.checkpoint.documents import check_regular
from jaxpa.errors import JaxpaError, did_you_mean, first_repeated, quoted
from jaxpa.request.groups import Checkpoint
from jaxpa.request.record import from_json, schema
from jaxpa.request.request import GROUPS, Request, home_of

GROUPED = {**GROUPS, "checkpoint": Checkpoint}
STDIN = "-"
DEEPEST = 100  # lists and objects inside one another; a request has five
HANDED = ("/dev/", "/proc/")  # where a shell has the pipe of <(...); another pipe may have nobody who writes


@dataclass(frozen=True, kw_only=True)
class Row(Request):
    """A request as a row of a table: what it asks of which checkpoint, and the file that its picture goes to."""

    out: str | None = None
    """The file to write; None: as --out names it."""
    figure: bool = False
    """Also write OUT-figure.png: the inputs, their token masks, the results."""
    checkpoint: Checkpoint = field(default_factory=Checkpoint)

    @property
    def request(self) -> Request:
        return Request(**{each.name: getattr(self, each.name) for each in fields(Request)})


class Line(NamedTuple):
    """Where a line stands, and what it says: words, or a record."""

    number: int
    place: str
    said: list[str] | dict[str, Any]


def read_text(file: str) -> str:
    """The text of a file, or of a pipe that a shell hands over (`-`: stdin). Raises JaxpaError."""
    try:
        if file == STDIN:
            if isinstance(sys.stdin, io.TextIOWrapper):
                sys.stdin.reconfigure(encoding="utf-8-sig", errors="strict")  # as a file, whatever the locale
            return sys.stdin.read()
        if not (file.startswith(HANDED) and stat.S_ISFIFO(os.stat(file).st_mode)):
            check_regular(Path(file))
        return Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise JaxpaError(f"{file} cannot be read: {error}: save it as UTF-8") from None
    except (OSError, ValueError) as error:
        raise JaxpaError(f"{file} cannot be read: {error}") from None


def read_prompts(file: str) -> list[tuple[int, str]]:
    """The lines of a file that are neither empty nor a comment (#), with their numbers. Raises JaxpaError."""
    lines = ((number, line.strip()) for number, line in enumerate(read_text(file).split("\n"), 1))
    found = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not found:
        raise JaxpaError(f"{file} holds no prompt: write one a line")
    return found


def read_table(file: str) -> list[Line]:
    """Every line of a file (`-`: stdin) that is not empty. Raises JaxpaError."""
    text = read_text(file)
    suffix = "" if file == STDIN else Path(file).suffix.lower()
    if suffix in (".csv", ".tsv"):
        return list(_csv(file, text, "\t" if suffix == ".tsv" else ","))
    rows = suffix in (".jsonl", ".ndjson") or text.lstrip()[:1] == "{"
    return list((_objects if rows else _commands)(file, text))


def _commands(file: str, text: str) -> Iterator[Line]:
    for number, line in enumerate(text.split("\n"), 1):  # and not where Unicode, too, sees the end of a line
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise JaxpaError(f"{file}:{number}: {error}") from None
        words = words[1:] if words[:1] == ["jaxpa"] else words
        if words:
            yield Line(number, f"{file}:{number}", words)


def _objects(file: str, text: str) -> Iterator[Line]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = _json(line)
        except JaxpaError as error:
            raise JaxpaError(f"{file}:{number}: {error}") from None
        except (ValueError, RecursionError) as error:
            raise JaxpaError(f"{file}:{number}: not JSON ({error}): write one object a line") from None
        if not isinstance(record, dict):
            raise JaxpaError(f'{file}:{number}: not a JSON object: write one a line, such as {{"prompt": "a cat"}}')
        yield Line(number, f"{file}:{number}", record)


def _json(text: str) -> Any:
    """Raises RecursionError where it is nested deeper than any request: writing it down again might not end well."""
    value = json.loads(text, object_pairs_hook=_once)
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return value
    raise RecursionError(f"nested more than {DEEPEST} deep")


def _inside(value: Any) -> Iterable[Any]:
    """What an object or a list holds; nothing of any other value."""
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names are said once each: of two values one would be lost."""
    if (twice := first_repeated(name for name, _ in pairs)) is not None:
        raise JaxpaError(f"{quoted(twice)} is given twice")
    return dict(pairs)


def _csv(file: str, text: str, delimiter: str) -> Iterator[Line]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    place = f"{file}:1"
    try:
        names = [name.strip() for name in next(reader, [])]
        _check_header(names, delimiter)
        place = f"{file}:{reader.line_num + 1}"
        for cells in reader:
            if any(cells[len(names) :]):
                raise JaxpaError("more cells than the header has")
            record: dict[str, Any] = {}
            for name, cell in zip(names, cells, strict=False):
                if cell:
                    _put(record, name, _cell(cell))
            if record:
                yield Line(reader.line_num, f"{file}:{reader.line_num}", record)
            place = f"{file}:{reader.line_num + 1}"
    except csv.Error as error:
        raise JaxpaError(f"{place}: the row that begins here is not CSV ({error}): does a quote stay open?") from None
    except JaxpaError as error:
        raise JaxpaError(f"{place}: {error}") from None


def _check_header(names: list[str], delimiter: str) -> None:
    if (twice := first_repeated(filter(None, names))) is not None:
        raise JaxpaError(f"{quoted(twice)} is given twice")
    for other in ";\t,":
        if len(names) == 1 and other in names[0]:
            raise JaxpaError(f"{other!r} stands between the names of the columns, and not {delimiter!r}: change it")


def _cell(text: str) -> Any:
    """A list or an object in JSON; else the text, which the type of its column reads."""
    if text.lstrip()[:1] in ("[", "{"):
        try:
            return _json(text)
        except (ValueError, RecursionError):
            return text
    return text


def _put(record: dict[str, Any], name: str, value: Any) -> None:
    """Set `subjects.0.image` in a record of dictionaries and lists."""
    if not name:
        raise JaxpaError(f"the cell {quoted(value)} stands under no name")
    *path, last = [int(part) if part.isdecimal() and len(part) < 6 else part for part in name.split(".")]
    if not isinstance(last, str):
        raise JaxpaError(f"there is no column {quoted(name)}: end it with a name")
    inside: Any = record
    for part, following in zip(path, [*path, last][1:], strict=True):
        empty: Any = [] if isinstance(following, int) else {}
        if isinstance(inside, list):
            if not isinstance(part, int) or part > len(inside):
                raise JaxpaError(f"the column {quoted(name)} comes before the one that it counts on")
            inside += [empty] * (part == len(inside))
            inside = inside[part]
        elif isinstance(inside, dict):
            inside = inside.setdefault(part, empty)
        else:
            break
    if not isinstance(inside, dict) or last in inside:  # by the cell of a column that stands for the whole
        raise JaxpaError(f"{quoted(name)} is given twice: in its own column, and as a part of another")
    inside[last] = value


def row_of(record: dict[str, Any], text: bool = False) -> Row:
    """The row that a record says; text: its values are the words of a table. Raises JaxpaError."""
    own = {each.name for each in fields(Row)}
    nested = {name: dict(value) if isinstance(value, dict) else value for name, value in record.items() if name in own}
    for name in (name for name in record if name not in own):
        home = _home(name, record, own)
        group = nested.setdefault(home, {})
        if not isinstance(group, dict):  # refused below, by its type
            continue
        if name in group:
            raise JaxpaError(f"{name} is given twice: alone, and as a part of {home}")
        group[name] = record[name]
    if text and isinstance(method := nested.get("method"), dict) and not isinstance(method.get("tau", []), list):
        method["tau"] = [method["tau"]]
    if isinstance(checkpoint := nested.get("checkpoint"), dict) and "lora" in checkpoint:
        checkpoint["lora"] = _loras(checkpoint["lora"])
    return from_json(nested, Row, lax=text)


def _loras(said: Any) -> Any:
    """LoRAs as their flag has them, FILE:SCALE, or several of these, beside objects."""
    several = [said] if isinstance(said, str) else said
    if not isinstance(several, list):
        return several
    return [asdict(parse_lora(each)) if isinstance(each, str) and each else each for each in several]


def _home(name: str, record: Iterable[str], own: set[str]) -> str:
    if home := home_of(name, record):
        return home
    if name in {each.name for each in fields(Checkpoint)}:
        return "checkpoint"
    known = own | {each.name for group in GROUPED.values() for each in fields(group)}
    raise JaxpaError(f"there is no column {quoted(name)}{did_you_mean(name, sorted(known))}")


def table_schema() -> dict[str, Any]:
    """The JSON schema of a line of JSON, or of a CSV table's row."""
    found = schema(Row)
    for name, group in GROUPED.items():
        inner = found["$defs"][group.__name__]["properties"]
        found["properties"] |= {key: value for key, value in inner.items() if key not in found["properties"]}
        assert name in found["properties"]
    return found
