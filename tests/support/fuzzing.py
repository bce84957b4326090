"""How often the fuzz tests try: 60 cases each that are always the same, or as many new ones as JAXPA_FUZZ says."""

import json
import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

CASES = os.environ.get("JAXPA_FUZZ")
fuzz = settings(
    max_examples=int(CASES or 60),
    derandomize=CASES is None,
    deadline=None if CASES is None else 20_000,  # ms: a hang
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

numbers = st.one_of(
    st.integers(), st.sampled_from([0, -1, 1, 2**31, 2**63, 10**30]), st.floats(allow_nan=True, allow_infinity=True)
)
scalars = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=12))
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def damaged(draw: Any, whole: bytes) -> bytes:
    """Bytes with a few of them changed, cut out, put in, or cut off."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        # Headers come first: half of the damage is done there.
        at = at % 600 if draw(st.booleans()) else at
        match draw(st.sampled_from(["flip", "change", "insert", "remove", "end"])):
            case "flip":
                data[at : at + 1] = bytes(b ^ (1 << draw(st.integers(0, 7))) for b in data[at : at + 1])
            case "change":
                data[at : at + 8] = draw(st.binary(max_size=8))
            case "insert":
                data[at:at] = draw(st.binary(max_size=16))
            case "remove":
                del data[at : at + draw(st.integers(1, 64))]
            case "end":
                del data[at:]
    return bytes(data)


@st.composite
def altered(draw: Any, record: Any) -> Any:
    """JSON with some of its values exchanged, some of its names misspelt, gone or doubled."""
    record = json.loads(json.dumps(record))
    for _ in range(draw(st.integers(1, 3))):
        inside = record
        while isinstance(inside, dict | list) and inside:
            keys = sorted(inside) if isinstance(inside, dict) else range(len(inside))
            key = draw(st.sampled_from(list(keys)))
            deeper = inside[key]
            if isinstance(deeper, dict | list) and deeper and draw(st.integers(0, 3)):
                inside = deeper
                continue
            match draw(st.sampled_from(["exchange", "remove", "rename", "nudge"])):
                case "exchange":
                    inside[key] = draw(values)
                case "remove":
                    del inside[key]
                case "rename" if isinstance(inside, dict):
                    inside[draw(st.text(max_size=8))] = inside.pop(key)
                case "nudge" if isinstance(deeper, int | float):
                    inside[key] = draw(st.sampled_from([deeper + 1, -deeper, deeper * 2, deeper / 3, str(deeper)]))
            break
        else:
            return draw(values)
    return record
