"""One proven connection between rank 0 and another rank, with its threads."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from rvllm_local import framing
from rvllm_local.distributed.frames import MAX_FRAME, Beat, Frame
from rvllm_local.distributed.silence import SERVING_S, TICK_S, Silence
from rvllm_local.framing import FrameError

_BEAT_S = 0.5
# The other side's process has gone, or this one has closed the connection itself. One
# that ends with frames unread resets it.
_ENDED = (errno.EPIPE, errno.ECONNRESET, errno.EBADF)
T = TypeVar("T")


class Link(Generic[T]):
    """Sends and receives frames, gives signs of life and listens for them.

    `peer` is the other side's name for people.
    """

    def __init__(
        self,
        connection: socket.socket,
        decoder: msgspec.msgpack.Decoder[T],
        peer: str,
    ) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = connection
        self._decoder = decoder
        self.peer = peer
        self._sending = threading.Lock()
        self._ending = threading.Lock()
        self._is_over = threading.Event()
        self._silence = Silence(None)
        self._is_started = False
        self._take: Callable[[T], None]
        self._lost: Callable[[str], None]

    def send(self, frame: Frame) -> None:
        """Send one frame. Raises OSError if the other side has gone."""
        with self._sending:
            self._connection.sendall(framing.encode(frame))

    def receive(self) -> T | None:
        """The next frame, before `start`; None at the end. Raises `FrameError`."""
        body = framing.receive(self._connection, MAX_FRAME)
        return None if body is None else framing.decode(body, self._decoder)

    def start(
        self,
        take: Callable[[T], None],
        lost: Callable[[str], None],
        pid: int | None,
    ) -> None:
        """Hand frames to `take`, and tell `lost` once why there will be no more.

        Both are called on threads of the link. `pid` is the other side's process, where
        it is on this machine.
        """
        self._is_started = True
        self._take = take
        self._lost = lost
        self._silence = Silence(pid)
        for work in (self._read, self._beat, self._judge):
            name = f"rvllm-link-{work.__name__.strip('_')}"
            threading.Thread(target=work, name=name, daemon=True).start()

    def be_strict(self) -> None:
        """From now on a short silence means that the other side hangs."""
        self._silence.limit_s = SERVING_S

    def close(self) -> None:
        """End the connection; after `start`, `lost` is told."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        if not self._is_started:
            self._connection.close()

    def _end(self, reason: str) -> None:
        with self._ending:
            if self._is_over.is_set():
                return
            self._is_over.set()
        self._lost(reason)

    def _read(self) -> None:
        try:
            while (frame := self.receive()) is not None:
                self._silence.note_sign()
                if not isinstance(frame, Beat):
                    self._take(frame)
        except FrameError as error:
            self._end(f"spoke nonsense: {error}")
            return
        except OSError as error:
            self._end(end_in_words(error))
            return
        finally:
            self._connection.close()
        self._end("ended")

    def _beat(self) -> None:
        """Signs of life. Where a frame is being sent none is needed."""
        beat = framing.encode(Beat())
        while not self._is_over.wait(_BEAT_S):
            if self._sending.acquire(blocking=False):
                try:
                    self._connection.sendall(beat)
                except OSError:
                    return  # the reader finds the end
                finally:
                    self._sending.release()

    def _judge(self) -> None:
        while not self._silence.is_too_long():
            if self._is_over.wait(TICK_S):
                return
        self._end(f"gave no sign of life for {self._silence.limit_s:g} s")


def end_in_words(error: OSError) -> str:
    """What a connection's error says about the other side."""
    if error.errno in _ENDED:
        return "ended"
    return f"was lost: {error.strerror}"
