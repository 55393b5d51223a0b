"""What a server does to its own process as it starts: descriptors for its connections, no core files, logs that quote nothing.

A core file holds the memory, and with it prompts; so can the text of an error that another library raised.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import sys
import traceback
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import TracebackType
from typing import Any

_DESCRIPTORS_BESIDE = (
    512  # engines, caches, logs, and what a library opens for a moment
)
_LOG_BYTES, _LOGS_KEPT = 2 * 2**20, 4  # of a file, and files beside the latest
_NOISY = ("uvicorn", "uvicorn.error", "asyncio", "httpx")
logger = logging.getLogger(__name__)


def prepare_limits(connections: int) -> None:
    """Allow as many descriptors as `connections` need, and no core file. Says so if the system allows fewer."""
    resource.setrlimit(
        resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1])
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + _DESCRIPTORS_BESIDE
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (OSError, ValueError):  # macOS has a limit of its own beside the hard one
        most = soft
    if most < needed:
        logger.warning(
            "the system allows %d open files, which is too few for %d connections; raise it with: ulimit -n %d",
            most, connections, needed,
        )  # fmt: skip


def prepare_logs(path: Path | None = None) -> None:
    """Log to stderr or to a file, in lines that hold no text of a foreign error.

    The file is its owner's alone; a full one makes room for the next. Raises `OSError`.
    """
    handler: logging.Handler
    if path is None:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Formatter("rvllm: %(message)s"))
    else:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handler = _PrivateFile(
            path, maxBytes=_LOG_BYTES, backupCount=_LOGS_KEPT, encoding="utf-8"
        )
        handler.setFormatter(_Formatter("%(asctime)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    # Its warnings are faults of clients, which are counted where they are refused.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)


def report_to_log(loop: asyncio.AbstractEventLoop) -> None:
    """Have the loop report what nobody caught by its kind: its own report shows the error's text."""
    loop.set_exception_handler(_report)


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    logger.error(
        "%s", context.get("message", "an error outside of any request"), exc_info=error
    )


class _PrivateFile(RotatingFileHandler):
    """Log files that nobody else can read."""

    def _open(self) -> TextIOWrapper:
        stream = super()._open()
        os.fchmod(stream.fileno(), 0o600)
        return stream


class _Formatter(logging.Formatter):
    """Shows where an error came from and its class."""

    def formatException(  # noqa: N802 (the library's name)
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None]
        | tuple[None, None, None],
    ) -> str:
        kind, _, trace = ei
        return "".join(traceback.format_tb(trace)) + (
            kind.__name__ if kind is not None else ""
        )
