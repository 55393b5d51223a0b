"""One fork of a model's prompt process, as the server sees it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time

from rvllm_local import host
from rvllm_local.conversation import prompt_frames as frames
from rvllm_local.framing import decode

_LONG_S = 0.25  # work that takes longer goes on behind the work of others
_NICENESS = 10
_ALL_THREADS = 2  # of a process, in the number of its clock
# Bytes of work or an answer from which a fork's memory may have grown; such an answer
# is not read on the event loop.
_LARGE = 128 * 2**10
_BUFFER = 2**20
_TRIM_AFTER_S = 2.0


class Fork:
    """A connection and the process behind it. Used on the event loop only.

    `is_spent` says that it should take no more work: its memory may have grown, and its
    priority cannot be raised again.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pid: int
    ) -> None:
        self._reader, self._writer = reader, writer
        self.pid = pid
        self.num_answers = 0
        self.is_spent = False

    @classmethod
    async def over(cls, connection: socket.socket) -> Fork:
        """The fork at the other end. Raises `ConnectionError` if there is none."""
        streams = await asyncio.open_connection(sock=connection, limit=_BUFFER)
        try:
            number = await streams[0].readexactly(frames.PID.size)
        except asyncio.IncompleteReadError as error:
            streams[1].close()
            raise ConnectionError("the process has gone") from error
        except BaseException:
            streams[1].close()
            raise
        (pid,) = frames.PID.unpack(number)
        return cls(*streams, pid)

    async def ask(self, work: bytes) -> frames.Done:
        """The answer to a frame of work. Raises `ConnectionError` if the process ends."""
        self._cpu_before = _cpu_s(self.pid)
        self._watch()
        try:
            self._writer.write(work)
            await self._writer.drain()
            head = await self._reader.readexactly(frames.LENGTH.size)
            body = await self._reader.readexactly(frames.length_of(head))
        except asyncio.IncompleteReadError as error:
            raise ConnectionError("the process has gone") from error
        finally:
            self._alarm.cancel()
        self.num_answers += 1
        if max(len(work), len(body)) <= _LARGE:
            return decode(body, frames.DONE)
        self.is_spent = True
        asyncio.get_running_loop().call_later(_TRIM_AFTER_S, _trim)
        return await asyncio.to_thread(decode, body, frames.DONE)

    def close(self) -> None:
        """Let the process end, if it is waiting for work."""
        self._writer.close()

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        self._alarm = loop.call_later(_LONG_S, self._step_back)

    def _step_back(self) -> None:
        """Lower the priority of work that takes long, and not just waits."""
        used = _cpu_s(self.pid) - self._cpu_before
        if used < _LONG_S / 2 and sys.platform == "linux":
            self._watch()
            return
        self.is_spent = True
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, self.pid, _NICENESS)


def _trim() -> None:
    """Give the memory of a large answer back: a template can write millions of tokens."""
    asyncio.get_running_loop().run_in_executor(None, host.trim_heap)


def _cpu_s(pid: int) -> float:
    """Seconds of processor time that a process has had; 0 where that is not told."""
    if sys.platform != "linux":
        return 0.0
    try:
        return time.clock_gettime((~pid << 3) | _ALL_THREADS)
    except OSError:
        return 0.0
