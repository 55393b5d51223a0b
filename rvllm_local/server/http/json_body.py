"""From a request's bytes to a typed value: strict JSON, exact types, no unknown fields, no input quoted in an error."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from rvllm_local.conversation.field_errors import (
    STEP,
    allowed_words,
    field_of,
    parts_of,
    shown_field,
    unknown_field,
    words_for,
)
from rvllm_local.server.http.problems import Problem, bad_request
from rvllm_local.text.json_shape import shape_of

T = TypeVar("T", bound=msgspec.Struct)
Dropped = list[str] | None

_MAX_DEPTH = 100
_MAX_VALUES = 50_000  # of a thousand tools, or ten thousand messages
_MAX_NUMBERS = 1_000_000  # token ids, for the most part
_MOST_UNKNOWN = 64  # fields that a lenient server drops from one request
# Fields that say where the rest of the input is: without it the answer would be another.
_ELSEWHERE = frozenset(
    (
        "thread",
        "thread_id",
        "conversation",
        "conversation_id",
        "session",
        "session_id",
        "context",
        "previous_response_id",
        "previous_message_id",
        "parent_message_id",
    )
)


def decode(
    body: bytes, kind: type[T], *, is_lenient: bool = False, dropped: Dropped = None
) -> T:
    """`body` as a `kind`. Raises `Problem` 400 that names the field.

    With `is_lenient`, unknown fields are dropped, and their names added to `dropped`.
    """
    if not body:
        raise bad_request("the body is empty; send a JSON object")
    _check_shape(body)
    try:
        return msgspec.json.decode(body, type=kind, strict=True)
    except msgspec.ValidationError as error:
        _check_known(error, kind, "", is_lenient)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _malformed(error) from None
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _malformed(error) from None
    return convert(value, kind, is_lenient=is_lenient, dropped=dropped)


def convert(
    value: Any,
    kind: type[T],
    where: str = "",
    *,
    is_lenient: bool = False,
    dropped: Dropped = None,
) -> T:
    """A decoded value as a `kind`, like `decode`; `where` is its place in the body."""
    for _ in range(_MOST_UNKNOWN):
        try:
            return msgspec.convert(value, kind, strict=True)
        except msgspec.ValidationError as error:
            path, name = _check_known(error, kind, where, is_lenient)
            field = shown_field(_below(where, path), name)
            values = _drop(value, path, name)
            if not values:
                raise _unknown(field) from None
            if name in _ELSEWHERE and any(item is not None for item in values):
                raise _elsewhere(field) from None
            if dropped is not None:
                dropped.append(field)
    raise bad_request(f"the body has more than {_MOST_UNKNOWN} unknown fields")


def _check_known(
    error: msgspec.ValidationError, kind: type, where: str, is_lenient: bool
) -> tuple[str | None, str]:
    """The path and the name of an unknown field that may be dropped.

    Raises the `Problem` of everything else that is wrong.
    """
    what, path = parts_of(error)
    name = unknown_field(what)
    full_path = _below(where, path)
    if name is None:
        words = words_for(what, full_path, allowed_words(kind, what, path))
        raise bad_request(words, field_of(full_path)) from None
    if not is_lenient:
        raise _unknown(shown_field(full_path, name)) from None
    return path, name


def _below(where: str, path: str | None) -> str:
    """A decoder's path from the body's top, if its own top is at `where`."""
    inner = (path or "$").removeprefix("$")
    return f"$.{where}{inner}" if where else f"${inner}"


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
    shown = where[0] if where else ""
    return bad_request(f"the body is not valid JSON in UTF-8 {shown}".rstrip())


def _unknown(field: str) -> Problem:
    return bad_request(
        f"unknown field {field!r}; remove it, or start the server with --lenient to "
        "have such fields dropped",
        field,
        "unknown_field",
    )


def _elsewhere(field: str) -> Problem:
    return bad_request(
        f"{field} says that a part of the input is elsewhere; this server does not have "
        "it: send the whole input",
        field,
        "unsupported",
    )


def _drop(value: Any, path: str | None, name: str) -> list[Any]:
    """Remove an unknown field where `path` leads, and beside it.

    Returns its values; none if the way cannot be followed.
    """
    holders = [value]
    for key, index in STEP.findall(path or ""):
        holders = _followed(holders, key, index)
    values = []
    for holder in holders:
        if isinstance(holder, dict) and name in holder:
            values.append(holder.pop(name))
    return values


def _followed(holders: list[Any], key: str, index: str) -> list[Any]:
    """One step down from each holder.

    A list holds things of one kind: what is unknown in one is unknown in all.
    """
    inner: list[Any] = []
    for holder in holders:
        if key:
            if isinstance(holder, dict) and key in holder:
                inner.append(holder[key])
        elif index == "..." and isinstance(holder, dict):
            inner.extend(holder.values())
        elif isinstance(holder, list):
            inner.extend(holder)
    return inner
