"""Small notes of what was learnt on this machine, so that no start learns it again.

A note is trusted only if it is this user's and nobody else could write or read it. One
that cannot be read is as good as none. Knows nothing of what the notes say.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import uuid
from pathlib import Path
from typing import Any

from rvllm_local.models.cache_folder import models_folder

_LARGEST = 1 << 16  # bytes of a note
_MOST = 512  # notes; the oldest go first


def read_note(subject: str, cache_dir: Path | None = None) -> Any:
    """What was noted of a subject; None if nothing was."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(_note_path(subject, cache_dir), flags)
        with os.fdopen(descriptor, "rb") as file:
            if not _is_private(os.fstat(descriptor)):
                return None
            note = json.loads(file.read(_LARGEST))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(note, dict) or note.get("subject") != subject:
        return None
    return note.get("value")


def write_note(subject: str, value: Any, cache_dir: Path | None = None) -> None:
    """Note something of a subject, over what was noted before.

    Failing to costs only time.
    """
    path = _note_path(subject, cache_dir)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = path.with_name(f".{uuid.uuid4().hex}")
        descriptor = os.open(draft, flags, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(json.dumps({"subject": subject, "value": value}).encode())
        draft.replace(path)
        _drop_oldest(path.parent)


def _is_private(state: os.stat_result) -> bool:
    """True for a plain file of this user that nobody else may read or write."""
    if not stat.S_ISREG(state.st_mode) or state.st_uid != os.geteuid():
        return False
    return not state.st_mode & 0o077


def _note_path(subject: str, cache_dir: Path | None) -> Path:
    name = hashlib.sha256(subject.encode()).hexdigest()[:32]
    return models_folder(cache_dir) / ".notes" / name


def _drop_oldest(folder: Path) -> None:
    paths = [Path(entry.path) for entry in os.scandir(folder)]
    if len(paths) > _MOST:
        paths.sort(key=lambda path: path.lstat().st_mtime)
        for path in paths[: len(paths) - _MOST]:
            path.unlink(missing_ok=True)
