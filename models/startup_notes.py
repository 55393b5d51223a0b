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
_OTHERS = 0o077  # what anybody but the owner may do
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_WRITE_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


def settings_of(beginnings: tuple[str, ...]) -> list[tuple[str, str]]:
    """Environment variables whose names begin so, sorted: part of many a subject."""
    settings = []
    for name, value in os.environ.items():
        if name.startswith(beginnings):
            settings.append((name, value))
    return sorted(settings)


def read_note(subject: str, cache_dir: Path | None = None) -> Any:
    """What was noted of a subject; None if nothing was."""
    try:
        path = _note_path(subject, cache_dir)
        descriptor = os.open(path, _READ)
        with os.fdopen(descriptor, "rb") as file:
            state = os.fstat(descriptor)
            if not _is_private(state):
                return None
            text = file.read(_LARGEST)
        note = json.loads(text)
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(note, dict):
        return None
    # Another subject may have the same digest.
    noted_subject = note.get("subject")
    if noted_subject != subject:
        return None
    return note.get("value")


def write_note(subject: str, value: Any, cache_dir: Path | None = None) -> None:
    """Note something of a subject, over what was noted before.

    A note that cannot be written costs only time.
    """
    path = _note_path(subject, cache_dir)
    folder = path.parent
    note = {"subject": subject, "value": value}
    text = json.dumps(note)
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft_name = f".{uuid.uuid4().hex}"
        draft = folder / draft_name
        descriptor = os.open(draft, _WRITE_NEW, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        draft.replace(path)
        _drop_oldest(folder)


def _is_private(state: os.stat_result) -> bool:
    """True for a plain file of this user that nobody else may read or write."""
    if not stat.S_ISREG(state.st_mode):
        return False
    if state.st_uid != os.geteuid():
        return False
    return not state.st_mode & _OTHERS


def _note_path(subject: str, cache_dir: Path | None) -> Path:
    folder = models_folder(cache_dir) / ".notes"
    digest = hashlib.sha256(subject.encode()).hexdigest()
    return folder / digest[:32]


def _drop_oldest(folder: Path) -> None:
    paths = list(folder.iterdir())
    surplus = len(paths) - _MOST
    if surplus <= 0:
        return
    paths.sort(key=_time_of_change)
    for path in paths[:surplus]:
        path.unlink(missing_ok=True)


def _time_of_change(path: Path) -> float:
    return path.lstat().st_mtime
