"""Where ranks come in: several may prove themselves at a time, each within a deadline.

So nobody who says nothing, or speaks slowly, keeps a rank of the job waiting.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable

from rvllm_local.distributed import frames
from rvllm_local.distributed.handshake import let_in
from rvllm_local.distributed.link import Link
from rvllm_local.distributed.team import RankLink
from rvllm_local.errors import EngineError
from rvllm_local.framing import FrameError

logger = logging.getLogger(__name__)

_DEADLINE_S = 10.0  # for the proof and the first frame together
_MOST_WAITING = 64  # of more than these the oldest is sent away


class Door:
    """Hands the link of each rank that has said hello to `welcome`.

    `welcome` is called on a thread of the link's. It keeps the link, or raises
    `EngineError`, which sends the rank away.
    """

    def __init__(
        self,
        listener: socket.socket,
        secret: bytes,
        welcome: Callable[[int, RankLink, frames.Hello], None],
    ) -> None:
        self._listener = listener
        self._secret = secret
        self._welcome = welcome
        self._lock = threading.Lock()
        # When each began, the oldest first.
        self._waiting: dict[socket.socket, float] = {}

    def look(self, wait_s: float) -> None:
        """Take the next who comes within `wait_s`; send away who takes too long."""
        self._listener.settimeout(wait_s)
        with contextlib.suppress(TimeoutError):
            connection, (host, _) = self._listener.accept()
            with self._lock:
                self._waiting[connection] = time.monotonic()
            threading.Thread(
                target=self._let_in,
                args=(connection, host),
                name="rvllm-door",
                daemon=True,
            ).start()
        self._send_away_old()

    def close(self) -> None:
        """Send away all who have not proven themselves."""
        with self._lock:
            for connection in self._waiting:
                _hang_up(connection)

    def _let_in(self, connection: socket.socket, host: str) -> None:
        try:
            rank = let_in(connection, self._secret)
            link: RankLink = Link(connection, frames.FROM_RANK, host)
            hello = link.receive()
            if not isinstance(hello, frames.Hello):
                raise EngineError("it did not say hello")
            self._forget(connection)
            self._welcome(rank, link, hello)
        except (EngineError, FrameError, OSError) as error:
            logger.warning("%s was turned away: %s", host, error)
            connection.close()
        finally:
            self._forget(connection)

    def _forget(self, connection: socket.socket) -> None:
        """From now on the connection may last."""
        with self._lock:
            self._waiting.pop(connection, None)

    def _send_away_old(self) -> None:
        """Their threads find the connection closed, and end."""
        now = time.monotonic()
        with self._lock:
            num_extra = len(self._waiting) - _MOST_WAITING
            for index, (connection, began) in enumerate(self._waiting.items()):
                if index < num_extra or now - began > _DEADLINE_S:
                    _hang_up(connection)


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
