"""One option as text can give it: what it may be, and how it is read.

Made from a field's type, so that bounds and words stand in one place.
"""

from __future__ import annotations

import re
import types
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from msgspec import Meta

from rvllm_local.errors import ConfigError

LARGEST = 2**63 - 1
_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}
_UNIONS = (Union, types.UnionType)
Kind = Literal["size", "count", "switch", "choice", "folder", "name"]


@dataclass(frozen=True, slots=True)
class Option:
    """An option's name and values. `least` bounds a number, `choices` a choice.

    `help` is a line for people. None is a value only if `is_optional`.
    """

    name: str
    kind: Kind
    help: str
    default: Any
    is_optional: bool
    least: int
    choices: tuple[str, ...]

    def check(self, value: Any) -> None:
        """Raise `ConfigError` for a value that cannot be."""
        if not self._is_possible(value):
            raise ConfigError(f"{self.name} cannot be {value!r:.80}: {self._rule()}")

    def convert(self, value: Any) -> Any:
        """Read a value as a person writes it: text, or what TOML makes of it.

        Raises `ConfigError` that says what the value must be.
        """
        if self.kind == "size":
            value = parse_bytes(value)
        elif self.kind == "count":
            value = _number(value)
        elif self.kind == "switch":
            value = _switch(value)
        elif self.kind == "folder":
            value = _folder(value)
        if value is None or not self._is_possible(value):
            raise ConfigError(self._rule())
        return value

    def _is_possible(self, value: Any) -> bool:
        if value is None:
            return self.is_optional
        if self.kind == "choice":
            return isinstance(value, str) and value in self.choices
        if self.kind == "switch":
            return isinstance(value, bool)
        if self.kind in ("folder", "name"):
            return isinstance(value, str) and value != ""
        if isinstance(value, bool) or not isinstance(value, int):
            return False
        return self.least <= value <= LARGEST

    def _rule(self) -> str:
        if self.kind == "choice":
            first = ", ".join(self.choices[:-1])
            return f"it must be {first} or {self.choices[-1]}"
        if self.kind == "switch":
            return "it must be true or false"
        if self.kind == "folder":
            return "it must be the absolute path of a folder"
        if self.kind == "name":
            return "it must be a name, not empty"
        return f"it must be a whole number of at least {self.least}"


def option_of(name: str, hint: Any, default: Any) -> Option:
    """The option that a field's annotated type describes."""
    shape, notes, is_optional = _unwrapped(hint)
    text, least, unit = "", 0, ""
    for note in notes:
        text = note.description or text
        if note.extra is not None:
            unit = note.extra["unit"]
        if isinstance(note.ge, int):
            least = note.ge
    choices = get_args(shape)
    return Option(
        name=name,
        kind=_kind(shape, unit),
        help=text,
        default=default,
        is_optional=is_optional,
        least=least,
        choices=choices,
    )


def _unwrapped(hint: Any) -> tuple[Any, Sequence[Meta], bool]:
    """A type without its notes and without None; its notes; whether it had None."""
    notes: list[Meta] = []
    is_optional = False
    while True:
        if get_origin(hint) is Annotated:
            hint, *more = get_args(hint)
            notes += more
        elif get_origin(hint) in _UNIONS:
            hint, _ = get_args(hint)  # None is the last
            is_optional = True
        else:
            return hint, notes, is_optional


def _kind(shape: Any, unit: str) -> Kind:
    if shape is bool:
        return "switch"
    if shape is str:
        return "name" if unit == "name" else "folder"
    if shape is int:
        return "size" if unit == "bytes" else "count"
    assert get_origin(shape) is Literal, shape
    return "choice"


def parse_bytes(value: int | str) -> int:
    """Bytes from a number, or from text like "256MB" or "1.5 GiB".

    Raises `ConfigError`.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ConfigError(
            f"a size must be a number of bytes or text like 256MB, not {value!r}"
        )
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(value))
    if match is None or match[2].upper() not in _UNITS:
        raise ConfigError(f"{value!r} is not a size; write it like 256MB or 2GiB")
    size = Decimal(match[1]) * _UNITS[match[2].upper()]
    if not 1 <= size <= LARGEST:
        raise ConfigError(
            f"a size must be from 1 byte to {LARGEST} bytes, not {value!r}"
        )
    return int(size)


def expanded(name: str) -> Path:
    """A path with the home of its user for `~`.

    `~nobody`, where there is no such user, stays as it is written.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def _number(value: Any) -> int | None:
    text = str(value).strip()
    is_number = isinstance(value, int | str) and not isinstance(value, bool)
    if is_number and re.fullmatch(r"[0-9]{1,18}", text):
        return int(text)
    return None


def _switch(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    text = str(value).lower()
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("0", "false", "no", "off"):
        return False
    return None


def _folder(value: Any) -> str | None:
    if not isinstance(value, str) or not value:
        return None
    path = expanded(value)
    if not path.is_absolute() or (path.exists() and not path.is_dir()):
        return None
    return str(path)
