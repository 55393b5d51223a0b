"""Finds files below a folder by a few letters of their path.

What `.gitignore` and `.ignore` name is left out, and so are folders that hold no work
of the person. Bounded: a very large tree is looked at in part.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

LOOKED_AT = 6_000  # entries, of all folders together
DEPTH = 8  # folders below the first
_RULES_LIMIT = 64 * 2**10  # bytes of one file of rules
_RULE_FILES = (".gitignore", ".ignore")
_NEVER = frozenset(
    (
        ".git",
        ".hg",
        ".svn",
        ".mypy_cache",
        ".pytest_cache",
        ".ruff_cache",
        ".tox",
        ".venv",
        "__pycache__",
        "node_modules",
        "venv",
    )
)


@dataclass(frozen=True, slots=True)
class _Rule:
    """One line of an ignore file, for what lies below `folder` ("" or "a/b/")."""

    folder: str
    pattern: str
    is_kept: bool  # the line began with "!"
    is_for_folders: bool
    is_anchored: bool

    def matches(
        self,
        path: str,
        is_folder: bool,
    ) -> bool:
        if self.is_for_folders and not is_folder:
            return False
        below = path.removeprefix(self.folder)
        if self.is_anchored:
            return fnmatch.fnmatchcase(below, self.pattern)
        name = below.rpartition("/")[2]
        return fnmatch.fnmatchcase(name, self.pattern)


def find_files(folder: Path) -> list[str]:
    """Paths below a folder with "/" between their parts; folders end with one.

    The rules of the folders above count, up to the one that is a repository.
    """
    root, prefix = _repository(folder)
    rules: list[_Rule] = []
    above = ""
    for part in prefix.split("/")[:-1]:
        rules += _read_rules(root, above)
        above += f"{part}/"
    paths: list[str] = []
    waiting: list[tuple[str, int, Sequence[_Rule]]] = [(prefix, 0, rules)]
    seen = 0
    while waiting and seen < LOOKED_AT:
        parent, depth, outer = waiting.pop(0)
        present = [*outer, *_read_rules(root, parent)]
        for name, is_folder in _entries(root / parent, LOOKED_AT - seen):
            seen += 1
            path = parent + name
            if _is_ignored(path, name, is_folder, present):
                continue
            below = path.removeprefix(prefix)
            if not is_folder:
                paths.append(below)
                continue
            paths.append(below + "/")
            if depth < DEPTH:
                waiting.append((path + "/", depth + 1, present))
    return paths


def _repository(folder: Path) -> tuple[Path, str]:
    """The repository around a folder and the way to it; itself where there is none."""
    folder = folder.absolute()
    for root in (folder, *folder.parents):
        if (root / ".git").exists():
            way = folder.relative_to(root).as_posix()
            return root, "" if way == "." else f"{way}/"
    return folder, ""


def best_matches(
    paths: Sequence[str],
    letters: str,
    limit: int,
) -> list[str]:
    """The paths that hold the letters in their order, the closest first."""
    scored = []
    for path in paths:
        score = _score(path, letters)
        if score is not None:
            scored.append((score, len(path), path))
    scored.sort()
    return [path for _, _, path in scored[:limit]]


def _score(path: str, letters: str) -> int | None:
    """How far apart the letters lie; 0 is best, None where they are not all there.

    Letters in the name count before those in its folders.
    """
    letters = letters.lower()
    lower = path.lower()
    name = lower.rstrip("/").rpartition("/")[2]
    if name.startswith(letters):
        return 0
    if letters in name:
        return 1
    if letters in lower:
        return 2
    position = 0
    gaps = 0
    for letter in letters:
        index = lower.find(letter, position)
        if index < 0:
            return None
        gaps += index - position
        position = index + 1
    return 3 + gaps


def _entries(folder: Path, limit: int) -> Iterator[tuple[str, bool]]:
    """Names and whether they are folders, sorted; links to folders are not followed."""
    rows: list[tuple[str, bool]] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if len(rows) >= limit:
                    break
                if entry.name.isprintable():
                    rows.append((entry.name, entry.is_dir(follow_symlinks=False)))
    except OSError:
        return
    yield from sorted(rows)


def _is_ignored(
    path: str,
    name: str,
    is_folder: bool,
    rules: Sequence[_Rule],
) -> bool:
    if name in _NEVER or name.startswith("."):
        return True
    is_ignored = False
    for rule in rules:  # the last rule that fits decides
        if rule.matches(path, is_folder):
            is_ignored = not rule.is_kept
    return is_ignored


def _read_rules(folder: Path, parent: str) -> list[_Rule]:
    rules = []
    for name in _RULE_FILES:
        try:
            with (folder / parent / name).open(encoding="utf-8") as file:
                text = file.read(_RULES_LIMIT)
        except (OSError, ValueError):
            continue
        for line in text.splitlines():
            if rule := _rule(parent, line.strip()):
                rules.append(rule)
    return rules


def _rule(parent: str, line: str) -> _Rule | None:
    if not line or line.startswith("#"):
        return None
    is_kept = line.startswith("!")
    pattern = line.removeprefix("!")
    is_for_folders = pattern.endswith("/")
    pattern = pattern.rstrip("/").replace("**/", "").replace("/**", "")
    is_anchored = "/" in pattern
    pattern = pattern.removeprefix("/")
    return _Rule(
        parent,
        pattern,
        is_kept,
        is_for_folders,
        is_anchored,
    )
