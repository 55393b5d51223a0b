"""Runs the plain chat on the standard streams."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import IO

from rvllm_local.errors import EndpointError
from rvllm_local.tui.launcher import ServerLauncher
from rvllm_local.tui.options import ChatOptions
from rvllm_local.tui.plain import Plain


def run_plain(
    options: ChatOptions,
    server: ServerLauncher,
    prompt: str | None,
) -> int:
    """Run the plain chat on the standard streams."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        return asyncio.run(_run(options, server, prompt))
    except BrokenPipeError:
        return 0
    except EndpointError as error:
        print(f"rvllm: error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    finally:
        _silence(sys.stdout)


async def _run(
    options: ChatOptions,
    server: ServerLauncher,
    prompt: str | None,
) -> int:
    return await Plain(
        options,
        server,
        sys.stdin,
        sys.stdout,
        sys.stderr,
    ).run(prompt)


def _silence(stream: IO[str]) -> None:
    """Where nobody reads any more, the interpreter's last flush must not complain."""
    try:
        stream.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
