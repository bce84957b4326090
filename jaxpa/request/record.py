"""Requests, and what holds one, as JSON: for the metadata of pictures, rows of a batch, and replays.

What a request leaves unsaid is left out; null is a value that switches something off; tau is written as on the command
line, 0.5 or "80%". Pictures are the names of their files.
"""

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import MISSING, Field, asdict, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar

import pydantic
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import PydanticOmit

from jaxpa.errors import JaxpaError, quoted
from jaxpa.presets import BlockTau, Preset
from jaxpa.request.request import GROUPS, Request
from jaxpa.request.taus import show_block_tau, show_tau
from jaxpa.schedule import Steps


def to_json(request: Any) -> dict[str, Any]:
    """A request as JSON takes it, or another dataclass of such values.

    Raises JaxpaError if a picture, a mask or an embedding is not a file.
    """
    return _plain(request, "the request")


Kind = TypeVar("Kind")


def from_json(data: Mapping[str, Any] | str, kind: type[Kind] = Request, lax: bool = False) -> Kind:
    """The request that `to_json` wrote; lax: numbers may be written as text, as in the cells of a table.

    Raises JaxpaError with every key that is unknown or has a wrong value.
    """
    try:
        text = data if isinstance(data, str) else json.dumps(data)
        return _adapter(kind).validate_json(text, strict=False if lax else None)
    except RecursionError:
        raise JaxpaError("not JSON that can be read: it is nested too deeply") from None
    except pydantic.ValidationError as error:
        # One fault for each place, though a union complains once for every member.
        faults: dict[str, str] = {}
        for each in error.errors(include_url=False):
            parts = [str(part) for part in each["loc"] if isinstance(part, int) or part.isidentifier()]
            place = ".".join(part for part in parts if part not in MEMBERS)
            faults.setdefault(place, f"{each['msg']}, not {quoted(each['input'])}")
        raise JaxpaError("; ".join(f"{place or 'request'}: {said}" for place, said in faults.items())) from None


MEMBERS = ("int", "float", "str", "Steps", "Unset", "Box")  # of unions, as pydantic names them in the place of a fault


def _plain(value: Any, name: str) -> Any:
    if isinstance(value, Preset):
        return asdict(value)
    if is_dataclass(value) and not isinstance(value, type):
        if isinstance(value, Steps):
            return show_tau(value)
        if isinstance(value, BlockTau):
            return show_block_tau(value)
        return {key: _plain(each, key) for key, each in said(value).items()}
    if isinstance(value, Mapping):
        return {key: _plain(each, str(key)) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(each, name) for each in value]
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise JaxpaError(f"{name} is not a file ({type(value).__name__}): save it, and name the file instead")


def said(group: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults."""
    return {each.name: getattr(group, each.name) for each in fields(group) if not _is_default(group, each)}


def check_read(request: Request, read: Collection[str], what: str) -> None:
    """Raise JaxpaError for what a request says beside its prompt that `what` would not read.

    read: the fields of its sampling that count.
    """
    groups = {name: group for name in GROUPS if (group := getattr(request, name)) is not None}
    unread = [name for name in said(request) if name not in (*groups, "prompt")]
    unread += [name for group in groups.values() for name in said(group) if name not in read]
    if unread:
        raise JaxpaError(f"{unread[0]} would have no effect: {what} does not read it. Leave it out")


def _is_default(group: Any, each: Field[Any]) -> bool:
    value = getattr(group, each.name)
    default = each.default if each.default_factory is MISSING else each.default_factory()
    return type(value) is type(default) and value == default


class _Schema(GenerateJsonSchema):
    """JSON has no pictures in memory: those members of a union are left out."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JsonSchemaValue:
        raise PydanticOmit


CONFIG = pydantic.ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
Request.__pydantic_config__ = CONFIG  # type: ignore[attr-defined] # inherited by the groups


@cache
def _adapter(kind: type[Any]) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(kind)


def schema(kind: type[Request] = Request) -> dict[str, Any]:
    """The JSON schema of a request."""
    return _adapter(kind).json_schema(schema_generator=_Schema)
