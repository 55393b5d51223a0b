"""Names wrong fields, in one wording for HTTP bodies and for Python's arguments.

No value is quoted, since any of them can be a piece of a prompt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec
import msgspec.inspect

from rvllm_local.errors import ParameterError

_WRONG = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>[^`]*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`", re.DOTALL)
_NAME = re.compile(r"[A-Za-z0-9_$.-]{1,64}")  # other texts can be pieces of a prompt
_QUOTE = re.compile(r"['\"]")
# One step of a decoder's path: a field, or an index that may be left unsaid.
STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]")


def parts_of(error: msgspec.ValidationError) -> tuple[str, str | None]:
    """What is wrong, and the path to it."""
    match = _WRONG.match(str(error))
    if match is None:
        return str(error), None
    return match["what"], match["path"]


def unknown_field(what: str) -> str | None:
    """The name of an unknown field; None for another fault."""
    match = _UNKNOWN.fullmatch(what)
    if match is None:
        return None
    return match["name"]


def field_of(path: str | None) -> str | None:
    """A path of the decoder as the field's name, such as `messages[0].role`."""
    return (path or "").removeprefix("$").removeprefix(".") or None


def shown_field(path: str | None, name: str) -> str:
    """The full name of an unknown field, as far as it can be shown."""
    shown = name if _NAME.fullmatch(name) else "..."
    parent = field_of(path)
    return shown if parent is None else f"{parent}.{shown}"


def words_for(what: str, path: str | None, allowed: Sequence[str] = ()) -> str:
    """One line that names the field and what was expected of it.

    `allowed` are the words that the field may be, if it is one of some words.
    """
    if allowed:
        return f"{field_of(path)}: use one of {', '.join(allowed)}"
    what = _QUOTE.split(what)[0].rstrip()
    reason = what[:1].lower() + what[1:].replace("`", "")
    return f"{field_of(path) or 'the body'}: {reason}"


def allowed_words(kind: type, what: str, path: str | None) -> list[str]:
    """The words that may stand where `path` leads in a `kind`, if one of them must."""
    if not what.startswith("Invalid enum value"):
        return []
    types: list[Any] = [msgspec.inspect.type_info(kind)]
    for key, _ in STEP.findall(path or ""):
        inner: list[Any] = []
        for outer in types:
            inner.extend(_types_below(outer, key))
        types = inner
    words: list[str] = []
    for outer in types:
        for alternative in _alternatives(outer):
            if isinstance(alternative, msgspec.inspect.LiteralType):
                words.extend(map(str, alternative.values))
    return list(dict.fromkeys(words))


def _types_below(outer: Any, key: str) -> list[Any]:
    """The types one step below: of the field `key`, or of a list's items."""
    types: list[Any] = []
    for alternative in _alternatives(outer):
        if key and isinstance(alternative, msgspec.inspect.StructType):
            for field in alternative.fields:
                if field.encode_name == key:
                    types.append(field.type)
        elif not key and isinstance(alternative, msgspec.inspect.ListType):
            types.append(alternative.item_type)
    return types


def _alternatives(outer: Any) -> tuple[Any, ...]:
    if isinstance(outer, msgspec.inspect.UnionType):
        return tuple(outer.types)
    return (outer,)


def parameter_error(error: msgspec.ValidationError, kind: type) -> ParameterError:
    """The refusal of a Python argument that does not fit its `kind`."""
    what, path = parts_of(error)
    name = unknown_field(what)
    if name is None:
        allowed = allowed_words(kind, what, path)
        return ParameterError(field_of(path) or "", words_for(what, path, allowed))
    field = shown_field(path, name)
    return ParameterError(field, f"unknown field {field!r}; remove it")
