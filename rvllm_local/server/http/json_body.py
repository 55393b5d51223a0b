"""From a request's bytes to a typed value: strict JSON, exact types, no unknown fields, no input quoted in an error."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from rvllm_local.conversation.field_errors import (
    field_of,
    parts_of,
    shown_field,
    unknown_field,
    words_for,
)
from rvllm_local.server.http.problems import Problem, bad_request
from rvllm_local.text.json_shape import shape_of

T = TypeVar("T", bound=msgspec.Struct)

_MAX_DEPTH = 100
_MAX_VALUES = 50_000  # of a thousand tools, or ten thousand messages
_MAX_NUMBERS = 1_000_000  # token ids, for the most part
_MOST_UNKNOWN = 64  # fields that a lenient server drops from one request


def decode(body: bytes, kind: type[T], *, is_lenient: bool = False) -> T:
    """`body` as a `kind`. Raises `Problem` 400 that names the field; with `is_lenient`, unknown fields are dropped."""
    if not body:
        raise bad_request("the body is empty; send a JSON object")
    _check_shape(body)
    try:
        return msgspec.json.decode(body, type=kind, strict=True)
    except msgspec.ValidationError as error:
        what, path = parts_of(error)
        unknown = unknown_field(what)
        if unknown is None:
            raise _problem(what, path) from None
        if not is_lenient:
            raise _unknown(unknown, path) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _malformed(error) from None
    return _decode_leniently(body, kind)


def _decode_leniently(body: bytes, kind: type[T]) -> T:
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _malformed(error) from None
    for _ in range(_MOST_UNKNOWN):
        try:
            return msgspec.convert(value, kind, strict=True)
        except msgspec.ValidationError as error:
            what, path = parts_of(error)
            unknown = unknown_field(what)
            if unknown is None:
                raise _problem(what, path) from None
            if not _drop(value, path, unknown):
                raise _unknown(unknown, path) from None
    raise bad_request(f"the body has more than {_MOST_UNKNOWN} unknown fields")


def _check_shape(body: bytes) -> None:
    """No more values than can be read in a moment, and no nesting that could hurt a later layer."""
    shape = shape_of(body)
    if shape.depth > _MAX_DEPTH:
        raise bad_request(f"the body is nested more than {_MAX_DEPTH} deep")
    if shape.values > _MAX_VALUES:
        raise Problem(
            413,
            f"the body holds {shape.values} values; at most {_MAX_VALUES} are taken",
            "body_too_large",
        )
    if shape.numbers > _MAX_NUMBERS:
        raise Problem(
            413,
            f"the body holds {shape.numbers} numbers; at most {_MAX_NUMBERS} are taken",
            "body_too_large",
        )


def _malformed(error: Exception) -> Problem:
    where = re.search(r"\(byte \d+\)", str(error))
    return bad_request(
        f"the body is not valid JSON in UTF-8 {where[0] if where else ''}".rstrip()
    )


def _problem(what: str, path: str | None) -> Problem:
    return bad_request(words_for(what, path), field_of(path))


def _unknown(name: str, path: str | None) -> Problem:
    field = shown_field(path, name)
    return bad_request(
        f"unknown field {field!r}; remove it, or start the server with --lenient to have such fields dropped",
        field,
        "unknown_field",
    )


def _drop(value: Any, path: str | None, name: str) -> bool:
    """Remove an unknown field where `path` leads, and beside it; False if the way cannot be followed."""
    found = [value]
    for key, index in re.findall(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]", path or ""):
        if key:
            found = [one[key] for one in found if isinstance(one, dict) and key in one]
        elif index == "...":
            found = [
                each for one in found if isinstance(one, dict) for each in one.values()
            ]
        else:  # a list holds things of one kind: what is unknown in one is unknown in all
            found = [each for one in found if isinstance(one, list) for each in one]
    holders = [one for one in found if isinstance(one, dict) and name in one]
    for holder in holders:
        del holder[name]
    return bool(holders)
