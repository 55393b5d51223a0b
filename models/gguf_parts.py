"""Names of the files of one GGUF model that is split: `x-00001-of-00003.gguf` and others."""

from __future__ import annotations

import re
from pathlib import Path

_PART = re.compile(
    r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<ending>\.gguf)",
    re.IGNORECASE | re.DOTALL,
)
_MOST_PARTS = 1000


def part_names(name: str) -> list[str]:
    """The names of all parts of the model that this file is a part of, in order.

    Just the name where it is that of a whole model.
    """
    match = _PART.fullmatch(name)
    if match is None:
        return [name]
    count = int(match["count"])
    if not 1 <= int(match["number"]) <= count <= _MOST_PARTS:
        return [name]
    names = []
    for number in range(1, count + 1):
        names.append(f"{match['stem']}-{number:05}-of-{count:05}{match['ending']}")
    return names


def part_paths(path: Path) -> list[Path]:
    """The parts of a model in the folder of one of them, in order."""
    return [path.with_name(name) for name in part_names(path.name)]


def name_without_part(name: str) -> str:
    """A file's name without its part's number."""
    match = _PART.fullmatch(name)
    return name if match is None else f"{match['stem']}{match['ending']}"
