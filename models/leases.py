"""Which processes have a model open, so that nobody removes a model that is in use.

Each has a small locked file. The lock goes with its process, however that ends. What a
killed process leaves behind is removed by the next reader.
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

from rvllm_local.models.cache_folder import models_folder


@dataclass(frozen=True, slots=True)
class Running:
    """A model that a process has open. `since` is in seconds since the epoch."""

    pid: int
    name: str
    path: Path
    since: float


class Lease:
    """Held while a model is open; `close`, or the end of the process, gives it back."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    def close(self) -> None:
        """Give it back; closing twice is fine."""
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


def take_lease(name: str, path: Path, cache_dir: Path | None = None) -> Lease | None:
    """Say that this process has the model at `path` open.

    None where no file can be written.
    """
    row = {
        "pid": os.getpid(),
        "name": name,
        "path": str(path.resolve()),
        "since": time.time(),
    }
    try:
        folder = _folder(cache_dir)
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f".{uuid.uuid4().hex}"
        # A bare descriptor: a lease may die with a cycle of objects, in which a file
        # object would die first.
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, json.dumps(row).encode())
        suffix = draft.name[1:9]
        lease_path = folder / f"{os.getpid()}-{suffix}"
        draft.rename(lease_path)  # nobody sees it before it is locked
    except OSError:
        return None
    return Lease(lease_path, descriptor)


def running(cache_dir: Path | None = None) -> list[Running]:
    """Models that are open in any process of this user, oldest first."""
    models = []
    for path in _folder(cache_dir).glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            model = _read_lease(path)
            if model is not None:
                models.append(model)
    return sorted(models, key=lambda model: model.since)


def _read_lease(path: Path) -> Running | None:
    """The model of a lease; one whose process is gone is removed."""
    with path.open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            row = json.load(file)
            return Running(
                pid=int(row["pid"]),
                name=str(row["name"]),
                path=Path(row["path"]),
                since=float(row["since"]),
            )
        path.unlink(missing_ok=True)
    return None


def users_of(path: Path, cache_dir: Path | None = None) -> list[Running]:
    """Who has this model, or a file of it, open."""
    target = path.resolve()
    users = []
    for model in running(cache_dir):
        if model.path == target or target in model.path.parents:
            users.append(model)
    return users


def _folder(cache_dir: Path | None) -> Path:
    return models_folder(cache_dir) / ".running"
