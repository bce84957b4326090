"""Taus, and those of blocks, as words, numbers and JSON."""

import math
from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, TypeAlias

import pydantic

from jaxpa.errors import JaxpaError, quoted, real
from jaxpa.presets import BlockTau
from jaxpa.schedule import Steps


def parse_tau(text: str) -> float | Steps:
    """`0.6`: flow time; `80%`: the share of the steps that remain. Raises JaxpaError outside [0, 1]."""
    try:
        # Decimal: a percentage that `show_tau` wrote comes back to the last bit.
        value = float(Decimal(text.removesuffix("%")) / (100 if text.endswith("%") else 1))
    except (InvalidOperation, ValueError, OverflowError):
        value = math.nan
    if not 0 <= value <= 1:
        raise JaxpaError(f"tau {text!r}: give a flow time in [0, 1], or a percentage of the steps such as 80%")
    return Steps(value) if text.endswith("%") else value


def show_tau(tau: float | Steps) -> str:
    """tau in the shortest words that `parse_tau` reads as the same number."""
    exact = Decimal(repr(tau.share)) * 100 if isinstance(tau, Steps) else Decimal(repr(tau))
    return f"{exact.normalize():f}" + ("%" if isinstance(tau, Steps) else "")


def parse_block_tau(text: str) -> BlockTau:
    """`10-20=0.4`: blocks 10 to 20, both included, have a tau of 0.4. Raises JaxpaError."""
    blocks, equals, tau = text.partition("=")
    first, dash, last = blocks.partition("-")
    if not (equals and first.isdecimal() and (last.isdecimal() or not dash)):
        raise JaxpaError(f"{text!r} is no tau of blocks: give the first and the last block and their tau: 10-20=0.4")
    return BlockTau(int(first), int(last or first), parse_tau(tau))


def show_block_tau(own: BlockTau) -> str:
    """The words that `parse_block_tau` reads as the same value."""
    return f"{own.first}-{own.last}={show_tau(own.tau)}"


def check_block_taus(given: Any) -> tuple[BlockTau, ...]:
    """The taus of blocks, from `BlockTau`, their words, or {(first, last): tau}. Raises JaxpaError."""
    if isinstance(given, Mapping):
        try:
            given = [BlockTau(first, last, check_tau(tau)) for (first, last), tau in given.items()]
        except (TypeError, ValueError):
            raise JaxpaError(f"tau_blocks must be {{(first, last): tau}}, not {quoted(given)}") from None
    if not isinstance(given, Iterable) or not getattr(given, "ndim", 1):
        given = (given,)
    found = tuple(
        parse_block_tau(own) if isinstance(own, str) else own for own in ([given] if isinstance(given, str) else given)
    )
    if bad := [own for own in found if not isinstance(own, BlockTau)]:
        raise JaxpaError(f"tau_blocks must be {{(first, last): tau}}, not {quoted(bad[0])}")
    return found


def check_tau(tau: Any) -> float | Steps:
    """A tau as a plain number or `Steps`. Raises JaxpaError outside [0, 1]."""
    if isinstance(tau, str):
        return parse_tau(tau)
    return Steps(real("tau", tau.share, 0, 1)) if isinstance(tau, Steps) else real("tau", tau, 0, 1)


BlockTaus: TypeAlias = tuple[
    Annotated[
        BlockTau,
        pydantic.BeforeValidator(lambda value: parse_block_tau(value) if isinstance(value, str) else value),
        pydantic.WithJsonSchema({"type": "string", "pattern": "^[0-9]+-[0-9]+=[0-9.]+%?$"}),
    ],
    ...,
]
Tau: TypeAlias = Annotated[
    float | Steps,
    pydantic.BeforeValidator(lambda value: parse_tau(value) if isinstance(value, str) else value),
    pydantic.WithJsonSchema(
        {"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"type": "string", "pattern": "^[0-9.]+%?$"}]}
    ),
]
