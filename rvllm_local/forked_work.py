"""What forks that do foreign work share: the kernel's limits, and bytes from a socket."""

from __future__ import annotations

import resource
import signal
import socket
from pathlib import Path

_LARGEST_PART = 2**20  # bytes that are received at once


def limit_time(cpu_s: float, wall_s: float) -> None:
    """End this process when it has had so much; no code of ours has to run for that.

    0 is no limit.
    """
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    signal.setitimer(signal.ITIMER_REAL, wall_s)


def limit_memory(num_bytes: int, *, for_good: bool = False) -> None:
    """Let this process take so much more than it has now.

    With `for_good` nothing in it can raise the limit again.
    """
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return  # there the limit has no effect
    pages, *_ = statm.read_text(encoding="ascii").split()
    limit = int(pages) * resource.getpagesize() + num_bytes
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    if for_good:
        hard = limit
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def receive_exactly(connection: socket.socket, count: int) -> bytes:
    """`count` bytes; memory grows with what comes.

    Raises `ConnectionError` if the other side has gone.
    """
    data = bytearray()
    while len(data) < count:
        missing = count - len(data)
        part = connection.recv(min(missing, _LARGEST_PART))
        if not part:
            raise ConnectionError("the process has gone")
        data += part
    return bytes(data)
