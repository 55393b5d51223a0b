"""What a walk over a JSON schema can meet: no schema at all, or one beyond enforcing."""

from __future__ import annotations

Path = tuple[str, ...]  # keys from the outermost schema to a place in it
_MAX_SHOWN = 120


class SchemaFault(Exception):  # noqa: N818  (its kinds are the errors)
    """Something is wrong at a place of the schema; the message says what."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(message)
        self.path, self.message = path, message

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
    pointer = "/".join(("#", *path))
    pointer = "".join(char if char.isprintable() else "?" for char in pointer)
    if len(pointer) <= _MAX_SHOWN:
        return pointer
    return pointer[: _MAX_SHOWN - 3] + "..."
