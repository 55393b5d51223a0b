"""Which processes have a model open: a small locked file each, so that nobody removes a model that is in use.

The lock goes with its process, however that ends; what a killed process leaves behind is swept by the next reader.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from rvllm_local.models.wheel_fetch import cache_folder


@dataclass(frozen=True, slots=True)
class Running:
    """A model that a process has open. `since` is in seconds since the epoch."""

    pid: int
    name: str
    path: Path
    since: float


class Lease:
    """Held while a model is open; `close`, or the end of the process, gives it back."""

    def __init__(self, place: Path, descriptor: int) -> None:
        self._place, self._descriptor = place, descriptor

    def close(self) -> None:
        """Give it back; closing twice is fine."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            self._place.unlink(missing_ok=True)
            os.close(descriptor)

    def __del__(self) -> None:
        with contextlib.suppress(
            OSError, AttributeError, TypeError
        ):  # at the interpreter's end
            self.close()


def take_lease(name: str, path: Path) -> Lease | None:
    """Say that this process has the model at `path` open; None where no file can be written."""
    row = {
        "pid": os.getpid(),
        "name": name,
        "path": str(path.resolve()),
        "since": time.time(),
    }
    try:
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f".{uuid.uuid4().hex}"
        # A bare descriptor: a lease may die with a cycle of objects, in which a file object would die first.
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, json.dumps(row).encode())
        place = folder / f"{os.getpid()}-{draft.name[1:9]}"
        draft.rename(place)  # nobody sees it before it is locked
    except OSError:
        return None
    return Lease(place, descriptor)


def running() -> list[Running]:
    """Models that are open in any process of this user, oldest first."""
    found = []
    for place in _folder().glob("[0-9]*"):
        with (
            contextlib.suppress(OSError, ValueError, KeyError, TypeError),
            place.open(encoding="utf-8") as file,
        ):
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                row = json.load(file)
                found.append(
                    Running(
                        int(row["pid"]),
                        str(row["name"]),
                        Path(row["path"]),
                        float(row["since"]),
                    )
                )
            else:
                place.unlink(missing_ok=True)  # its process is gone
    return sorted(found, key=lambda one: one.since)


def users_of(path: Path) -> list[Running]:
    """Who has this model, or a file of it, open."""
    wanted = path.resolve()
    return [
        one for one in running() if one.path == wanted or wanted in one.path.parents
    ]


def _folder() -> Path:
    return cache_folder() / ".running"
