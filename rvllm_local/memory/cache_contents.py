"""What the disk cache holds, by model, and its removal. Opens no store.

A model's folder carries its name in a note, which is for people alone.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rvllm_local.memory.block_file import write_private
from rvllm_local.memory.block_scan import block_files, home_folders

_NOTE = "model.txt"
_LONGEST_NAME = 300  # characters of a note that are read


@dataclass(frozen=True, slots=True)
class CachedFile:
    """A block or a state: its bytes, and when it was last used, in Unix seconds."""

    size: int
    last_use: float


@dataclass(frozen=True, slots=True)
class CachedModel:
    """What the cache holds of one model and format. `name` is empty without a note."""

    folder: Path
    name: str
    files: tuple[CachedFile, ...]

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.size for file in self.files)

    @property
    def last_use(self) -> float:
        """When a file of it was last used; 0 without any."""
        return max((file.last_use for file in self.files), default=0.0)


def name_home(home: Path, name: str) -> None:
    """Note which model a folder of the store belongs to. Does not raise."""
    note = home / _NOTE
    with contextlib.suppress(OSError):
        if _read_note(home) != name:
            write_private(note, name.encode())


def cached_models(root: Path) -> list[CachedModel]:
    """The models in the cache, those first that take most. Empty without a folder."""
    if not root.is_dir():
        return []
    files: dict[Path, list[CachedFile]] = {}
    for home in home_folders(root):
        files[home] = []
    for file in block_files(root):
        files[file.home].append(CachedFile(file.size, file.last_use))
    models = []
    for home, cached in files.items():
        models.append(CachedModel(home, _read_note(home), tuple(cached)))
    models.sort(key=lambda model: -model.size)
    return models


def clear_cache(
    root: Path,
    is_chosen: Callable[[CachedModel], bool],
) -> list[CachedModel]:
    """Remove what the cache holds of chosen models; returns them.

    A running engine finds its blocks gone, and computes them anew.
    """
    cleared = []
    for model in cached_models(root):
        if is_chosen(model):
            shutil.rmtree(model.folder, ignore_errors=True)
            cleared.append(model)
    return cleared


def _read_note(home: Path) -> str:
    try:
        text = (home / _NOTE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    printable = "".join(letter for letter in text if letter.isprintable())
    return printable[:_LONGEST_NAME]
