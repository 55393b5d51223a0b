"""Ports for processes that a test starts: no socket can be kept open on them meanwhile."""

from __future__ import annotations

import contextlib
import random
import socket

# Below those that systems hand out by themselves, on Linux and macOS. One of those may be
# gone by the time that it is used: every connection of every other test takes one.
_PORTS = range(20_000, 32_000)


def spare_ports(count: int) -> list[int]:
    """So many ports in a row that nobody uses on the loopback."""
    choose = random.SystemRandom()
    while True:
        first = choose.choice(_PORTS[:-count])
        ports = list(range(first, first + count))
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in ports:
                probe = stack.enter_context(socket.socket())
                probe.bind(("127.0.0.1", port))
            return ports
