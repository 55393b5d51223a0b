"""Small notes of what was found out on this machine, so that it need not be found out at each start.

A note is trusted only if it is this user's own and nobody else could write or read it; one that cannot be read is as
good as none. Knows nothing of what the notes say.
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

from rvllm_local.models.wheel_fetch import cache_folder

_LARGEST = 1 << 16  # bytes of a note
_MOST = 512  # notes; the oldest go first


def read_note(subject: str) -> Any:
    """What was noted of a subject; None if nothing was."""
    try:
        descriptor = os.open(
            _place(subject), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        )
        with os.fdopen(descriptor, "rb") as file:
            state = os.fstat(descriptor)
            if (
                not stat.S_ISREG(state.st_mode)
                or state.st_uid != os.geteuid()
                or state.st_mode & 0o077
            ):
                return None
            found = json.loads(file.read(_LARGEST))
    except (OSError, ValueError, RecursionError):
        return None
    return (
        found.get("value")
        if isinstance(found, dict) and found.get("subject") == subject
        else None
    )


def write_note(subject: str, value: Any) -> None:
    """Note something of a subject, in place of what was noted before. Failing to costs only time."""
    place = _place(subject)
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = place.with_name(f".{uuid.uuid4().hex}")
        descriptor = os.open(
            draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
        )
        with os.fdopen(descriptor, "wb") as file:
            file.write(json.dumps({"subject": subject, "value": value}).encode())
        draft.replace(place)
        _drop_oldest(place.parent)


def _place(subject: str) -> Path:
    return cache_folder() / ".notes" / hashlib.sha256(subject.encode()).hexdigest()[:32]


def _drop_oldest(folder: Path) -> None:
    places = [Path(entry.path) for entry in os.scandir(folder)]
    if len(places) > _MOST:
        places.sort(key=lambda place: place.lstat().st_mtime)
        for place in places[: len(places) - _MOST]:
            place.unlink(missing_ok=True)
