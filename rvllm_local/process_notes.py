"""Small locked files by which processes of a user tell the others what they do.

The lock goes with its process, however that ends. What a killed process leaves behind
is removed by the next reader.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class Note:
    """Held by this process; `close`, or the end of the process, takes it away."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    def close(self) -> None:
        """Take it away; closing twice is fine."""
        descriptor = self._descriptor
        self._descriptor = -1
        if descriptor < 0:
            return
        self._path.unlink(missing_ok=True)
        os.close(descriptor)

    def __del__(self) -> None:
        # At the interpreter's end parts of it may be gone.
        with contextlib.suppress(OSError, AttributeError, TypeError):
            self.close()


def put_note(folder: Path, row: Mapping[str, Any]) -> Note | None:
    """A note of this process in a folder; its pid is added.

    None where no file can be written.
    """
    pid = os.getpid()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f".{uuid.uuid4().hex}"
        # A bare descriptor: a note may die with a cycle of objects, in which a file
        # object would die first.
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, json.dumps({"pid": pid, **row}).encode())
        suffix = draft.name[1:9]
        path = folder / f"{pid}-{suffix}"
        draft.rename(path)  # nobody sees it before it is locked
    except OSError:
        return None
    return Note(path, descriptor)


def read_notes(folder: Path) -> Iterator[dict[str, Any]]:
    """What the processes that live have noted in a folder."""
    for path in folder.glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            row = _read(path)
            if isinstance(row, dict):
                yield row


def _read(path: Path) -> Any:
    """The row of a note; one whose process is gone is removed."""
    with path.open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return json.load(file)
        path.unlink(missing_ok=True)
    return None
