"""What a walk over a JSON schema can meet: no schema at all, or one beyond enforcing."""

from __future__ import annotations

Path = tuple[str, ...]  # keys from the outermost schema to a place in it
_MAX_SHOWN = 120


class SchemaFault(Exception):  # noqa: N818  (its kinds are the errors)
    """Something is wrong at a place of the schema; the message says what."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(message)
        self.path = path
        self.message = message

    @property
    def place(self) -> str:
        """The place as a JSON pointer, cut where it is long."""
        return shown_place(self.path)


class MalformedSchemaError(SchemaFault):
    """It breaks JSON Schema's own rules."""


class UnsupportedSchemaError(SchemaFault):
    """It is sound, but cannot be enforced."""


def shown_place(path: Path) -> str:
    """A path as a JSON pointer in printable characters, cut where it is long.

    It may go into a header.
    """
    pointer = ""
    for char in "/".join(("#", *path)):
        if char.isprintable():
            pointer += char
        else:
            pointer += "?"  # it could end a header's line
    if len(pointer) <= _MAX_SHOWN:
        return pointer
    return pointer[: _MAX_SHOWN - 3] + "..."
