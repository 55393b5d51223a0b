"""Remembers what was learnt of a file's content, by its path, size and times.

So each file is read for it once. A file that is written again has another time and is
checked anew. Knows nothing of formats.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from rvllm_local.models.startup_notes import read_note, write_note

_CHUNK = 1 << 20
Stamp = list[str | int]


def file_sha256(
    path: Path,
    progress: Callable[[int], None] | None = None,
) -> str:
    """The file's sha256; `progress` is told the size of each piece that is read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while True:
            chunk = file.read(_CHUNK)
            if not chunk:
                break
            digest.update(chunk)
            if progress is not None:
                progress(len(chunk))
    return digest.hexdigest()


class StampedFiles:
    """Files as they are when this is made.

    Make it before the files are read: then what is noted is true of what was read.
    """

    def __init__(self, paths: Iterable[Path], cache_dir: Path | None = None) -> None:
        self._stamps: list[Stamp] = []
        for path in paths:
            if path.is_file():
                self._stamps.append(file_stamp(path))
        self._cache_dir = cache_dir

    def is_known(self, fact: str) -> bool:
        """True if this was noted before, of these very files, on this machine."""
        if not self._stamps:
            return False
        noted = read_note(self._subject(fact), self._cache_dir)
        return bool(noted == self._stamps)

    def note(self, fact: str) -> None:
        """Note that this is true of them. Failing to note it costs only time."""
        write_note(self._subject(fact), self._stamps, self._cache_dir)

    def _subject(self, fact: str) -> str:
        paths = [stamp[0] for stamp in self._stamps]
        return f"{fact}: {paths}"


def file_stamp(path: Path) -> Stamp:
    """A value that is another one whenever a file was written or replaced.

    The time of its last change is the system's alone to set.
    """
    state = path.stat()
    return [
        str(path.resolve()),
        state.st_size,
        state.st_mtime_ns,
        state.st_ctime_ns,
        state.st_ino,
    ]
