"""A chat's hold on the server that was started for chats."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from rvllm_local.errors import EndpointError

START_S = 20.0  # a keeper that was started opens its socket within this time
_LINES_KEPT = 20


class Lease:
    """An open connection to a server's keeper. It ends when the server has ended."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.count = 1  # chats that hold one
        self.lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self.report: Callable[[str], None] = lambda text: None
        self._writer = writer
        self._reading = asyncio.create_task(self._read(reader))

    @property
    def is_over(self) -> bool:
        """Whether the server has ended."""
        return self._reading.done()

    async def ended(self) -> None:
        """Wait until the server has ended."""
        await asyncio.wait({self._reading})

    @property
    def last_error(self) -> str:
        """What the server said last, best of all of an error."""
        for line in reversed(self.lines):
            if "error" in line:
                return line.removeprefix("rvllm: ")
        return self.lines[-1].removeprefix("rvllm: ") if self.lines else ""

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError, ValueError):
            while line := await reader.readline():
                message = json.loads(line)
                self.count = message.get("leases", self.count)
                if "line" in message:
                    self.lines.append(message["line"])
                    self.report(message["line"].removeprefix("rvllm: "))

    async def release(self) -> None:
        """Let go of the server; it ends some time after the last who does."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    async def end_server(self) -> None:
        """End the server now, and wait until it has ended."""
        with contextlib.suppress(OSError):
            self._writer.write(b"end\n")
            await self._writer.drain()
        await self.ended()
        await self.release()


async def take_lease(path: Path) -> Lease | None:
    """A lease on the server that is kept behind this socket; None without one."""
    try:
        reader, writer = await asyncio.open_unix_connection(str(path), limit=2**21)
    except (OSError, ValueError):
        return None
    return Lease(reader, writer)


async def start_server(
    path: Path,
    grace_s: float,
    command: Sequence[str],
) -> Lease:
    """Start a server with its keeper; where another chat does so now, share it.

    Raises `EndpointError`.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "rvllm_local.tui.keeper",
        str(path),
        str(grace_s),
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,  # neither Ctrl+C nor a closed window is meant for it
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    status = await process.wait()
    for _ in range(round(START_S / 0.05)):
        lease = await take_lease(path)
        if lease is not None:
            return lease
        if status:
            break
        await asyncio.sleep(0.05)
    raise EndpointError("the server could not be started: its keeper has ended")


def socket_path(port: str) -> Path:
    """Where the keeper of the server on a port listens: a folder of this person alone.

    Raises `EndpointError` where the folder belongs to somebody else.
    """
    folder = Path(tempfile.gettempdir(), f"rvllm-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    is_mine = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
    if not is_mine or status.st_mode & 0o077:
        raise EndpointError(f"{folder} is not yours alone; remove it")
    return folder / f"serve-{port}.sock"
