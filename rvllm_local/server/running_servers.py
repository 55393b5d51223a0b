"""Which servers of this user run, so that `rvllm stop` finds them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from rvllm_local.process_notes import Note, put_note, read_notes


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that listens. `since` is in seconds since the epoch."""

    pid: int
    host: str
    port: int
    since: float


def announce(host: str, port: int) -> Note | None:
    """Say that this process serves, until the note is closed."""
    return put_note(_folder(), {"host": host, "port": port, "since": time.time()})


def running_servers() -> list[RunningServer]:
    """The servers, oldest first."""
    servers = []
    for row in read_notes(_folder()):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            servers.append(_server_of(row))
    return sorted(servers, key=lambda server: server.since)


def _server_of(row: Mapping[str, Any]) -> RunningServer:
    return RunningServer(
        pid=int(row["pid"]),
        host=str(row["host"]),
        port=int(row["port"]),
        since=float(row["since"]),
    )


def _folder() -> Path:
    return Path(platformdirs.user_data_dir("rvllm", appauthor=False), "servers")
