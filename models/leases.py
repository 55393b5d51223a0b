"""Which processes have a model open, so that nobody removes a model that is in use."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rvllm_local.models.cache_folder import models_folder
from rvllm_local.process_notes import Note, put_note, read_notes


@dataclass(frozen=True, slots=True)
class Running:
    """A model that a process has open. `since` is in seconds since the epoch."""

    pid: int
    name: str
    path: Path
    since: float


def take_lease(name: str, path: Path, cache_dir: Path | None = None) -> Note | None:
    """Say that this process has the model at `path` open, until the note is closed.

    None where no file can be written.
    """
    row = {"name": name, "path": str(path.resolve()), "since": time.time()}
    return put_note(_folder(cache_dir), row)


def running(cache_dir: Path | None = None) -> list[Running]:
    """Models that are open in any process of this user, oldest first."""
    models = []
    for row in read_notes(_folder(cache_dir)):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            models.append(_model_of(row))
    return sorted(models, key=lambda model: model.since)


def _model_of(row: Mapping[str, Any]) -> Running:
    return Running(
        pid=int(row["pid"]),
        name=str(row["name"]),
        path=Path(row["path"]),
        since=float(row["since"]),
    )


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
