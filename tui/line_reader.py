"""Reads a line from the terminal while the event loop goes on."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import IO


async def read_line(source: IO[str]) -> str:
    """The next line with its end; nothing where the input has ended.

    It is read on a thread that does not keep the program alive.
    """
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    lines: list[str] = []

    def read() -> None:
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            lines.append(source.readline())
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=read, daemon=True).start()
    await done.wait()
    return lines[0] if lines else ""
