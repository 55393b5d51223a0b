"""What a wrong field is called: one wording for HTTP bodies and for Python's arguments.

No value is quoted, since any of them can be a piece of a prompt.
"""

from __future__ import annotations

import re

import msgspec

from rvllm_local.errors import ParameterError

_WRONG = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>[^`]*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`", re.DOTALL)
_NAME = re.compile(r"[A-Za-z0-9_$.-]{1,64}")  # other texts can be pieces of a prompt
_QUOTE = re.compile(r"['\"]")


def parts_of(error: msgspec.ValidationError) -> tuple[str, str | None]:
    """What is wrong, and the path to it."""
    match = _WRONG.match(str(error))
    if match is None:
        return str(error), None
    return match["what"], match["path"]


def unknown_field(what: str) -> str | None:
    """The name of the field that nobody knows; None for another fault."""
    match = _UNKNOWN.fullmatch(what)
    return None if match is None else match["name"]


def field_of(path: str | None) -> str | None:
    """A path of the decoder as the field's name, such as `messages[0].role`."""
    return (path or "").removeprefix("$").removeprefix(".") or None


def shown_field(path: str | None, name: str) -> str:
    """The full name of an unknown field, as far as it can be shown."""
    shown = name if _NAME.fullmatch(name) else "..."
    parent = field_of(path)
    return shown if parent is None else f"{parent}.{shown}"


def words_for(what: str, path: str | None) -> str:
    """One line that names the field and what was expected of it."""
    what = _QUOTE.split(what)[0].rstrip()
    reason = what[:1].lower() + what[1:].replace("`", "")
    return f"{field_of(path) or 'the body'}: {reason}"


def parameter_error(error: msgspec.ValidationError) -> ParameterError:
    """The refusal of a Python argument that does not have its type."""
    what, path = parts_of(error)
    name = unknown_field(what)
    if name is None:
        return ParameterError(field_of(path) or "", words_for(what, path))
    field = shown_field(path, name)
    return ParameterError(field, f"unknown field {field!r}; remove it")
