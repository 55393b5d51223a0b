"""`rvllm stop`: ends a server of this user, in order."""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Sequence

from rvllm_local.config import show_progress
from rvllm_local.errors import EngineError, ParameterError
from rvllm_local.server.running_servers import RunningServer, running_servers

_LOOK_S = 0.05
_AGAIN_S = 0.5
_LIMIT_S = 3600.0  # a server's own drain time is shorter


def stop(arguments: argparse.Namespace) -> int:
    """Stop the server, and wait for its end; exit status 1 if there is none."""
    servers = running_servers()
    if not servers:
        print("no server of yours runs")
        return 1
    for server in _meant(servers, arguments.port, arguments.all):
        end_server(server, is_urgent=arguments.now)
        print(f"stopped the server at {_shown(server)}")
    return 0


def end_server(
    server: RunningServer, *, is_urgent: bool, limit_s: float = _LIMIT_S
) -> None:
    """Ask a server to end, and wait until it has. Raises `EngineError`.

    Open requests may go on for its drain time, unless it is urgent.
    """
    _signal(server)
    if not is_urgent:
        show_progress(f"{_shown(server)} ends what is open (--now cuts it off)")
    now = time.monotonic()
    until, again = now + limit_s, now + _AGAIN_S
    while server in running_servers():
        now = time.monotonic()
        if is_urgent and now > again:
            _signal(server)  # the second cuts off; two at once would be one
            again = now + _AGAIN_S
        if now > until:
            raise EngineError(
                f"the server at {_shown(server)} has not ended; end it with: kill -9 "
                f"{server.pid}"
            )
        time.sleep(_LOOK_S)


def _signal(server: RunningServer) -> None:
    # One that has ended meanwhile is gone from the list; its number may be another's.
    if server in running_servers():
        os.kill(server.pid, signal.SIGTERM)


def _meant(
    servers: Sequence[RunningServer], port: int | None, is_all: bool
) -> Sequence[RunningServer]:
    """Those that are meant. Raises `ParameterError` where that is not clear."""
    shown = ", ".join(_shown(server) for server in servers)
    if is_all:
        return servers
    if port is not None:
        meant = [server for server in servers if server.port == port]
        if not meant:
            raise ParameterError(
                "port", f"no server of yours runs at port {port}; these do: {shown}"
            )
        return meant
    if len(servers) > 1:
        raise ParameterError(
            "port", f"several servers run: {shown}; choose one with --port, or --all"
        )
    return servers


def _shown(server: RunningServer) -> str:
    return f"{server.host}:{server.port}"
