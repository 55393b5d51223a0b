"""A rank finds rank 0, and proves to it who it is."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable

from rvllm_local.distributed import frames
from rvllm_local.distributed.agreement import versions
from rvllm_local.distributed.handshake import enter
from rvllm_local.distributed.invitation import Invitation
from rvllm_local.distributed.link import Link
from rvllm_local.errors import EngineError

_CONNECT_S = 10.0
_PAUSE_S = 1.0
LeaderLink = Link[frames.FromLeader]


def join(invitation: Invitation, say: Callable[[str], None]) -> LeaderLink:
    """A link with rank 0, however long it takes until that is there.

    Raises `EngineError` if the other side does not know the secret, or has gone.
    """
    connection = _connect(invitation.host, invitation.port, say)
    try:
        enter(connection, invitation.secret, invitation.rank)
        address = f"{invitation.host}:{invitation.port}"
        link = Link(connection, frames.FROM_LEADER, address)
        link.send(frames.Hello(os.getpid(), versions(), invitation.ranks))
    except OSError as error:
        raise EngineError(f"rank 0 was lost: {error}") from error
    return link


def _connect(address: str, port: int, say: Callable[[str], None]) -> socket.socket:
    is_first = True
    while True:
        try:
            return socket.create_connection((address, port), _CONNECT_S)
        except OSError as error:
            if is_first:
                say(f"waiting for rank 0 at {address}:{port}: {error.strerror}")
            is_first = False
        time.sleep(_PAUSE_S)


def told_job(link: LeaderLink) -> frames.Job | None:
    """The job that rank 0 tells; None if there is none after all.

    Raises `EngineError` if rank 0 does not take this rank.
    """
    try:
        frame = link.receive()
    except OSError:
        return None
    if isinstance(frame, frames.Failed):
        raise EngineError(frame.message)
    if frame is None or isinstance(frame, frames.Job):
        return frame
    raise EngineError(f"rank 0 said {type(frame).__name__} out of turn")
