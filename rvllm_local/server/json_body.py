"""From a request's bytes to a typed value: strict JSON, exact types, no unknown fields, no input quoted in an error."""

from __future__ import annotations

import math
import re
from typing import Any, TypeVar

import msgspec

from rvllm_local.server.problems import Problem, bad_request

T = TypeVar("T", bound=msgspec.Struct)

_MAX_DEPTH = 100
_WRONG = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>[^`]*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`", re.DOTALL)
_QUOTED = re.compile(r"'(.*)'", re.DOTALL)
_MOST_UNKNOWN = 64  # fields that a lenient server drops from one request


def decode(body: bytes, kind: type[T], *, is_lenient: bool = False) -> T:
    """`body` as a `kind`. Raises `Problem` 400 that names the field; with `is_lenient`, unknown fields are dropped."""
    value = _parse(body)
    if not isinstance(value, dict):
        raise bad_request("the body must be a JSON object")
    for _ in range(_MOST_UNKNOWN):
        try:
            return msgspec.convert(value, kind, strict=True)
        except msgspec.ValidationError as error:
            found = _WRONG.match(str(error))
            what, path = (found["what"], found["path"]) if found else (str(error), None)
            unknown = _UNKNOWN.fullmatch(what)
            if unknown is None:
                raise _problem(what, path) from None
            if not is_lenient or not _drop(value, path, unknown["name"]):
                raise _unknown(unknown["name"], path) from None
    raise bad_request(f"the body has more than {_MOST_UNKNOWN} unknown fields")


def _parse(body: bytes) -> Any:
    if not body:
        raise bad_request("the body is empty; send a JSON object")
    try:
        value = msgspec.json.decode(body)
    except RecursionError:
        raise bad_request("the body is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        where = re.search(r"\(byte \d+\)", str(error))
        raise bad_request(f"the body is not valid JSON in UTF-8 {where[0] if where else ''}".rstrip()) from None
    _check(value, 0)
    return value


def _check(value: Any, depth: int) -> None:
    """No number that is not finite, no text that is not Unicode, no nesting that could hurt a later layer."""
    if depth > _MAX_DEPTH:
        raise bad_request(f"the body is nested more than {_MAX_DEPTH} deep")
    if isinstance(value, float):
        if not math.isfinite(value):
            raise bad_request("the body holds a number out of range")
    elif isinstance(value, dict):
        for key, one in value.items():
            _check(key, depth + 1)
            _check(one, depth + 1)
    elif isinstance(value, list):
        for one in value:
            _check(one, depth + 1)
    elif isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise bad_request("the body holds half a surrogate pair, which is no text") from None


def _problem(what: str, path: str | None) -> Problem:
    field = _field(path)
    what = _QUOTED.sub(lambda found: f"'{_short(found[1])}'", what)
    return bad_request(f"{field or 'the body'}: {what[:1].lower()}{what[1:].replace('`', '')}", field)


def _unknown(name: str, path: str | None) -> Problem:
    field = ".".join(part for part in (_field(path), _short(name)) if part)
    return bad_request(
        f"unknown field {field!r}; remove it, or start the server with --lenient to have such fields dropped",
        field,
        "unknown_field",
    )


def _field(path: str | None) -> str | None:
    return (path or "").removeprefix("$").removeprefix(".") or None


def _short(text: str) -> str:
    return text if len(text) <= 40 and text.isprintable() else "..."


def _drop(value: Any, path: str | None, name: str) -> bool:
    """Remove an unknown field where `path` leads; False if the way cannot be followed."""
    found = [value]
    for key, index in re.findall(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]", path or ""):
        if key:
            found = [one[key] for one in found if isinstance(one, dict) and key in one]
        elif index == "...":
            found = [each for one in found if isinstance(one, dict) for each in one.values()]
        else:
            found = [one[int(index)] for one in found if isinstance(one, list) and int(index) < len(one)]
    holders = [one for one in found if isinstance(one, dict) and name in one]
    for holder in holders:
        del holder[name]
    return bool(holders)
