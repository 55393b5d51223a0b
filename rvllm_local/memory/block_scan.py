"""Finds the block files below the store's folder, and removes what cannot be one.

Knows names and sizes only.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rvllm_local.memory.block_file import (
    HEADER,
    KEY_BYTES,
    SUFFIX,
    TEMPORARY,
    is_hex_name,
    is_trusted,
    remove_foreign,
    writer_lives,
)

HOME_CHARS = 32  # of the fingerprint, in the name of a model's folder
_STALE_S = 3600.0  # a temporary file this old belongs to nobody


@dataclass(frozen=True, slots=True)
class BlockFile:
    """One file: where it is, its size with the header, and when it was last used."""

    path: Path
    size: int
    last_use: float

    @property
    def home(self) -> Path:
        """The folder of the model that it belongs to."""
        return self.path.parent.parent


def store_folder(cache_dir: Path) -> Path:
    """Where the store lies below the cache's folder: `root` in all that follows."""
    return cache_dir / "kv"


def block_files(root: Path) -> list[BlockFile]:
    """All block files, the one that was not used for longest first."""
    files = []
    for path in _files(root):
        try:
            info = path.lstat()
            if _is_block(path, info):
                files.append(BlockFile(path, info.st_size, _last_use(path, info)))
        except OSError:  # another process was quicker
            continue
    files.sort(key=lambda file: file.last_use)
    return files


def home_folders(root: Path) -> Iterator[Path]:
    """The folders of models, each named by the beginning of its fingerprint."""
    for home in root.iterdir():
        if not is_hex_name(home, HOME_CHARS):
            continue
        if not home.is_symlink() and home.is_dir():
            yield home


def _files(root: Path) -> Iterator[Path]:
    """Everything in the folders that the store gave their names."""
    for home in home_folders(root):
        for folder in home.iterdir():
            if is_hex_name(folder, 2):
                yield from _own_files(folder)


def _own_files(folder: Path) -> list[Path]:
    """The files in one of a home's folders. A link is removed, not followed."""
    try:
        if folder.is_symlink():
            folder.unlink()
        if not folder.is_dir():
            return []
        return list(folder.iterdir())
    except OSError:
        return []


def _last_use(path: Path, info: os.stat_result) -> float:
    """A file's time. A clock that was ahead would make it the youngest for ever."""
    now = time.time()
    if info.st_mtime > now:
        with contextlib.suppress(OSError):
            os.utime(path)
    return min(info.st_mtime, now)


def _is_block(path: Path, info: os.stat_result) -> bool:
    """True for what may be a block; removes what certainly is none."""
    if path.suffix == TEMPORARY:
        if time.time() - info.st_mtime > _STALE_S or not writer_lives(path):
            path.unlink()
        return False
    name_fits = path.suffix == SUFFIX and is_hex_name(
        path.with_suffix(""), 2 * KEY_BYTES
    )
    if name_fits and is_trusted(info) and info.st_size > HEADER.size:
        if info.st_mode & 0o077:
            # Copied by hand: nobody else could write it, nobody else is to read it.
            path.chmod(0o600)
        return True
    remove_foreign(path)
    return False
