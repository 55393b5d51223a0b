"""The values that keywords hold: numbers, texts, literals. Each is checked or refused."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from rvllm_local.text.grammar.schema_errors import (
    MalformedSchemaError,
    Path,
    UnsupportedSchemaError,
)

MAX_SCHEMA_CHARS = 1 << 20
MAX_DEPTH = 64
MAX_COUNT = 10_000  # minItems, maxLength and their like
MAX_ENUM = 5000
MAX_INTEGER = 10**15  # floats hold every integer up to here, and far more
_MAX_LITERAL_CHARS = 10_000
_SMALLEST = 1e-9
_MOST_SHIFTED, _MOST_RESTS = 2**32, 10_000
_TYPES = frozenset(
    {"null", "boolean", "integer", "number", "string", "array", "object"}
)


def check_plain_json(schema: Any) -> None:
    """Refuse a schema that is no JSON, or too much of it."""
    try:
        text = json.dumps(schema, allow_nan=False)
    except RecursionError as error:
        raise MalformedSchemaError((), f"nests deeper than {MAX_DEPTH}") from error
    except (ValueError, TypeError) as error:
        raise MalformedSchemaError((), f"is not plain JSON ({error})") from error
    if len(text) > MAX_SCHEMA_CHARS:
        raise MalformedSchemaError(
            (), f"has {len(text)} characters; at most {MAX_SCHEMA_CHARS} are taken"
        )


def is_binary_fraction(number: float) -> bool:
    """True for numbers by which floats divide without a rest of their own."""
    return float(number).as_integer_ratio()[1] <= 1024


def checked_count(value: Any, path: Path) -> int:
    """A whole number. One beyond the limit is clamped where that narrows."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(value, float) and value.is_integer():
        value, is_whole = int(value), True
    if not is_whole or value < 0:
        raise MalformedSchemaError(path, "must be a whole number, not negative")
    if value <= MAX_COUNT:
        return int(value)
    if path[-1].startswith("max"):
        return MAX_COUNT
    raise UnsupportedSchemaError(
        path, f"is {value}; at most {MAX_COUNT} can be enforced"
    )


def checked_limit(value: Any, path: Path) -> float:
    """A bound of numbers. One beyond the limit is clamped where that narrows."""
    number = checked_number(value, path)
    is_upper = "aximum" in path[-1]
    if is_upper and number > MAX_INTEGER:
        return MAX_INTEGER
    if not is_upper and number < -MAX_INTEGER:
        return -MAX_INTEGER
    check_magnitude(number, path)
    return number


def checked_number(value: Any, path: Path) -> float:
    """A finite number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise MalformedSchemaError(path, "must be a number")
    number: float = value
    return number


def check_magnitude(number: float, path: Path) -> None:
    """Refuse numbers that floats and texts do not carry alike."""
    if abs(number) > MAX_INTEGER or 0 < abs(number) < _SMALLEST:
        raise UnsupportedSchemaError(
            path,
            f"is too large or too small; numbers up to {MAX_INTEGER:.0e} can be enforced",
        )


def checked_multiple(value: Any, path: Path, *, takes_decimals: bool) -> float:
    """A divisor.

    Without `takes_decimals` it is a binary fraction: validators that divide floats find
    0.3 no multiple of 0.1.
    """
    number = checked_number(value, path)
    if number <= 0:
        raise MalformedSchemaError(path, "must be above zero")
    check_magnitude(number, path)
    if not is_binary_fraction(number) and not takes_decimals:
        raise UnsupportedSchemaError(
            path,
            "must be above zero, and a whole number or a binary fraction such as 0.25",
        )
    if not _has_few_digits(number):
        raise UnsupportedSchemaError(
            path, "has too many digits to be enforced; round it, such as to 0.01"
        )
    return number


def _has_few_digits(number: float) -> bool:
    """True for a divisor that is enforced in a moment.

    The compiler of grammars shifts the point in floats, whose last digits come with it.
    Each rest of the division is a state then; factors of ten need next to none.
    """
    while number % 1:
        number *= 10
    if number >= _MOST_SHIFTED:
        return False
    rests = int(number)
    for factor in (2, 5):
        while rests % factor == 0:
            rests //= factor
    return rests <= _MOST_RESTS


def checked_types(value: Any, path: Path) -> Any:
    """A type, or a list of them."""
    names = value
    if not isinstance(value, list):
        names = [value]
    are_types = [isinstance(name, str) and name in _TYPES for name in names]
    if not names or not all(are_types):
        types = ", ".join(sorted(_TYPES))
        raise MalformedSchemaError(path, f"must be one of {types}, or a list of them")
    if len(set(names)) < len(names):
        raise MalformedSchemaError(path, "names a type twice")
    return value


def checked_enum(value: Any, path: Path) -> list[Any]:
    """A list of literals."""
    if not isinstance(value, list) or not value:
        raise MalformedSchemaError(path, "must be a list that is not empty")
    if len(value) > MAX_ENUM:
        raise UnsupportedSchemaError(
            path, f"has {len(value)} values; at most {MAX_ENUM} are taken"
        )
    for literal in value:
        checked_literal(literal, path)
    return value


def checked_literal(value: Any, path: Path) -> Any:
    """A value that must come out as it is."""
    stack = [(value, 0)]
    while stack:
        part, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise UnsupportedSchemaError(path, f"nests deeper than {MAX_DEPTH}")
        if isinstance(part, str):
            check_text(part, path)
        elif isinstance(part, Mapping):
            for pair in part.items():
                stack.extend((item, depth + 1) for item in pair)
        elif isinstance(part, list):
            stack.extend((item, depth + 1) for item in part)
        elif isinstance(part, int | float) and not isinstance(part, bool):
            check_magnitude(checked_number(part, path), path)
    return value


def checked_names(value: Any, path: Path) -> list[str]:
    """The names of required properties."""
    if not isinstance(value, list):
        raise MalformedSchemaError(path, "must be a list of names")
    for name in value:
        if not isinstance(name, str):
            raise MalformedSchemaError(path, "must be a list of names")
        check_text(name, path)
    if len(set(value)) < len(value):
        raise MalformedSchemaError(path, "names a property twice")
    return value


def check_text(value: str, path: Path) -> None:
    """Refuse texts that the compiled grammar cannot write."""
    if len(value) > _MAX_LITERAL_CHARS:
        raise UnsupportedSchemaError(
            path,
            f"holds a text of {len(value)} characters; at most {_MAX_LITERAL_CHARS} "
            "are taken",
        )
    for char in value:
        if (char < " " and char not in "\n\r\t\b\f") or char == "\x7f":
            raise UnsupportedSchemaError(
                path, "holds a control character, which is never generated"
            )
        if "\ud800" <= char <= "\udfff":
            raise UnsupportedSchemaError(path, "holds half a surrogate pair")


def narrow_exclusive_limits(done: dict[str, Any]) -> None:
    """0.99999999999999999999 is below 1 as text and 1 as a float: stay clear of it."""
    if done.get("type") == "integer":
        return
    for key, sign in (("exclusiveMinimum", 1), ("exclusiveMaximum", -1)):
        if key not in done:
            continue
        limit = done.pop(key)
        inclusive = "minimum" if sign > 0 else "maximum"
        narrowed = limit + sign * max(abs(limit) * 1e-12, 1e-9)
        tighter = max if sign > 0 else min
        if inclusive in done:
            narrowed = tighter(done[inclusive], narrowed)
        done[inclusive] = narrowed
