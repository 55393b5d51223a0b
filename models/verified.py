"""Remembers which files' checksums were found right, by size, time and place, so that each is read for it once.

A file that is written again has another time and is checked anew. Knows nothing of formats.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from rvllm_local.models.hub import cache_folder

_CHUNK = 1 << 20


def file_sha256(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """The file's sha256; `progress` is told of each mebibyte's size."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            if progress:
                progress(len(chunk))
    return digest.hexdigest()


def is_remembered(path: Path, sha256: str) -> bool:
    """True if this very file had this checksum before, on this machine."""
    try:
        found = json.loads(_note(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(found == _stamp(path, sha256))


def remember(path: Path, sha256: str) -> None:
    """Note that the file has this checksum. Failing to note it costs only time."""
    with contextlib.suppress(OSError):
        note = _note(path)
        note.parent.mkdir(parents=True, exist_ok=True)
        draft = note.with_suffix(".new")
        draft.write_text(json.dumps(_stamp(path, sha256)), encoding="utf-8")
        draft.replace(note)


def _note(path: Path) -> Path:
    return cache_folder() / ".verified" / hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]


def _stamp(path: Path, sha256: str) -> list[str | int]:
    state = path.stat()
    return [str(path.resolve()), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, sha256]
