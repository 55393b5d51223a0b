"""From a request's bytes to a typed value: strict JSON, exact types, no unknown fields, no input quoted in an error."""

from __future__ import annotations

import re
from dataclasses import dataclass
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
from rvllm_local.server.http import foreign_fields
from rvllm_local.server.http.foreign_fields import Verdict
from rvllm_local.server.http.problems import Problem, bad_request, unsupported

T = TypeVar("T", bound=msgspec.Struct)
Dropped = list[str] | None

_MAX_DEPTH = 100
_MAX_VALUES = 50_000  # of a thousand tools, or ten thousand messages
_MAX_NUMBERS = 1_000_000  # token ids, for the most part
_SHORT = 2**16  # bytes, in which characters are counted in a moment
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

    A kind may allow more numbers than others with a class's `most_numbers`. Fields of
    other servers that ask for nothing are dropped. With `is_lenient`, all
    unknown fields are, and their names added to `dropped`.
    """
    if not body:
        raise bad_request("the body is empty; send a JSON object")
    _check_shape(body, getattr(kind, "most_numbers", _MAX_NUMBERS))
    try:
        return msgspec.json.decode(body, type=kind, strict=True)
    except msgspec.ValidationError as error:
        _unknown_in(error, kind, "")
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
            path, name = _unknown_in(error, kind, where)
        unknown = _Unknown(_below(where, path), name, _drop(value, path, name))
        if unknown.is_told(is_lenient) and dropped is not None:
            dropped.append(unknown.shown)
    raise bad_request(f"the body has more than {_MOST_UNKNOWN} unknown fields")


@dataclass(frozen=True, slots=True)
class _Unknown:
    """A field that no schema knows. `values` are those that it has, in each object."""

    path: str
    name: str
    values: list[Any]

    @property
    def shown(self) -> str:
        return shown_field(self.path, self.name)

    def is_told(self, is_lenient: bool) -> bool:
        """True if it is left out by name, false if it asks for nothing.

        Raises `Problem` for a field that may not be left out.
        """
        steps = [key for key, _ in STEP.findall(self.path) if key]
        holder = steps[-1] if steps else ""
        verdict = foreign_fields.verdict(holder, self.name, self.values)
        if not self.values:
            raise _unknown(self.shown)
        if verdict is Verdict.NEUTRAL:
            return False
        if self.name in _ELSEWHERE:
            raise _elsewhere(self.shown)
        if is_lenient or verdict is Verdict.HINT:
            return True
        if verdict is Verdict.REFUSED:
            allowed = foreign_fields.allowed_values(holder, self.name)
            raise unsupported(self.shown, allowed)
        raise _unknown(self.shown)


def _unknown_in(
    error: msgspec.ValidationError, kind: type, where: str
) -> tuple[str | None, str]:
    """The path and the name of an unknown field.

    Raises the `Problem` of everything else that is wrong.
    """
    what, path = parts_of(error)
    name = unknown_field(what)
    full_path = _below(where, path)
    if name is None:
        words = words_for(what, full_path, allowed_words(kind, what, path))
        raise bad_request(words, field_of(full_path)) from None
    return path, name


def _below(where: str, path: str | None) -> str:
    """A decoder's path from the body's top, if its own top is at `where`."""
    inner = (path or "$").removeprefix("$")
    return f"$.{where}{inner}" if where else f"${inner}"


def _is_surely_small(body: bytes) -> bool:
    """True if the brackets and commas, in texts or not, are too few for any bound."""
    opened = body.count(b"[") + body.count(b"{")
    return opened <= _MAX_DEPTH and 2 * opened + body.count(b",") < _MAX_VALUES


def _check_shape(body: bytes, most_numbers: int) -> None:
    """No more values than can be read in a moment, and no nesting that could hurt a later layer."""
    if len(body) <= _SHORT and _is_surely_small(body):
        return
    from rvllm_local.text.json_shape import shape_of  # loads numpy

    shape = shape_of(body)
    if shape.depth > _MAX_DEPTH:
        raise bad_request(f"the body is nested more than {_MAX_DEPTH} deep")
    if shape.values > _MAX_VALUES:
        raise Problem(
            413,
            f"the body holds {shape.values} values; at most {_MAX_VALUES} are taken",
            "body_too_large",
        )
    if shape.numbers > most_numbers:
        raise Problem(
            413,
            f"the body holds {shape.numbers} numbers; at most {most_numbers} are taken",
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
