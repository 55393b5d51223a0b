"""Keeps one server for all the chats that use it, and ends it after the last of them.

python -m rvllm_local.tui.keeper SOCKET GRACE_S COMMAND...

A chat holds a lease: a connection to the Unix socket. The connection ends with the
chat, however the chat ends, and `GRACE_S` seconds after the last lease the server does.
Every lease is told what the server prints, how many leases there are, and its end.
Knows no Textual and no HTTP: it must be small, for it stays as long as the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

STOP_S = 10.0  # the server has this long to end by itself
FIRST_LEASE_S = 3.0
START_S = 20.0
LINES_KEPT = 40
LOCK_POLL_S = 0.05


class Keeper:
    """The server's process and the leases on it."""

    def __init__(
        self,
        path: Path,
        grace_s: float,
        command: Sequence[str],
        on_start: Callable[[int], object] = lambda pid: None,
    ) -> None:
        self._path, self._grace_s, self._command = path, grace_s, command
        self._on_start = on_start  # is told the server's process id
        self._leases: set[asyncio.StreamWriter] = set()
        self._lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._is_over = asyncio.Event()
        self._first_lease = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Start the server and stay until it has ended."""
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=2**20,
            start_new_session=True,  # a download that it runs can be ended with it
        )
        self._on_start(process.pid)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._is_over.set)
        door = await asyncio.start_unix_server(self._lease, str(self._path))
        self._path.chmod(0o600)
        self._count()
        reading = asyncio.create_task(self._read(process))
        await self._until_over(reading)
        door.close()
        with contextlib.suppress(OSError):
            self._path.unlink()
        await _end(process)
        await asyncio.gather(reading, return_exceptions=True)
        self._tell({"ended": process.returncode})
        for writer in list(self._leases):
            writer.close()

    async def _until_over(self, reading: asyncio.Task[None]) -> None:
        """Until the server has ended or is to end."""
        over = asyncio.create_task(self._is_over.wait())
        await asyncio.wait({reading, over}, return_when=asyncio.FIRST_COMPLETED)
        if not self._leases and not self._is_over.is_set():
            # It ended before the chat that started it could hear why.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIRST_LEASE_S):
                    await self._first_lease.wait()
        over.cancel()

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # a line beyond the reader's limit
                continue
            if not line:
                return
            text = line.decode("utf-8", "replace").strip()
            if text:
                self._lines.append(text)
                self._tell({"line": text})

    async def _lease(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._leases.add(writer)
        self._first_lease.set()
        for text in self._lines:
            writer.write(_encode({"line": text}))
        self._count()
        try:
            while True:
                line = await reader.readline()
                if not line:
                    break
                if line.strip() == b"end":
                    self._is_over.set()
        except (OSError, ValueError):
            pass
        finally:
            self._leases.discard(writer)
            writer.close()
            self._count()

    def _count(self) -> None:
        """Tell the number of leases; with none, the time begins to run."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._leases:
            self._tell({"leases": len(self._leases)})
        else:
            # The chat that started it may be slow to come.
            grace_s = self._grace_s
            if not self._first_lease.is_set():
                grace_s = max(grace_s, START_S)
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(grace_s, self._is_over.set)

    def _tell(self, message: dict[str, Any]) -> None:
        for writer in list(self._leases):
            if not writer.is_closing():
                writer.write(_encode(message))


def _encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    for _ in range(round(STOP_S / LOCK_POLL_S)):
        # `wait` would also wait for what the server ran, which holds its output open.
        if process.returncode is not None:
            break
        await asyncio.sleep(LOCK_POLL_S)
    _kill_group(process.pid)
    await process.wait()


def _kill_group(server: int) -> None:
    """End the server and what it ran, whatever they do."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(server, signal.SIGKILL)


def take_lock(path: Path) -> IO[str] | None:
    """The right to be the one keeper of a socket; None where another has it."""
    lock = path.with_suffix(".lock")
    file = lock.open("a", encoding="ascii")  # held to the end
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def guard(pipe: int) -> None:
    """End the server if its keeper is gone without having ended it.

    The keeper writes the server's process id into the pipe, and at its own end a word;
    a keeper that was killed writes none.
    """
    told = b""
    while part := os.read(pipe, 100):
        told += part
    words = told.split()
    if len(words) != 1:
        return
    server = int(words[0])
    with contextlib.suppress(ProcessLookupError):
        os.kill(server, signal.SIGTERM)
        for _ in range(round(STOP_S / LOCK_POLL_S)):
            time.sleep(LOCK_POLL_S)
            os.kill(server, 0)
        os.kill(server, signal.SIGKILL)
    _kill_group(server)


def main(arguments: Sequence[str]) -> None:
    """Keep the server of the command line, unless another keeper does.

    Returns at once; the keeper goes on as a process that nobody has to wait for, with a
    guard beside it.
    """
    path = Path(arguments[0])
    lock = take_lock(path)
    for _ in range(round(STOP_S / LOCK_POLL_S)):
        if lock is not None or path.exists():
            break
        time.sleep(LOCK_POLL_S)  # the one before is about to end
        lock = take_lock(path)
    if lock is None:
        return
    if os.fork():
        return
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(writing)
        lock.close()  # the keeper alone holds it
        guard(reading)
        os._exit(0)
    os.close(reading)
    path.unlink(missing_ok=True)  # of a keeper that was killed

    def tell_guard(pid: int) -> None:
        os.write(writing, f"{pid} ".encode())

    asyncio.run(Keeper(path, float(arguments[1]), arguments[2:], tell_guard).run())
    os.write(writing, b"done")


if __name__ == "__main__":
    main(sys.argv[1:])
