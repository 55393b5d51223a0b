"""Ends processes that read foreign files for the server, and hears them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess

from rvllm_local.conversation import prompt_frames as frames
from rvllm_local.forked_work import receive_exactly


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and its forks; does not wait for it."""
    if process.poll() is None:  # otherwise the number may be another's by now
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def stop(process: subprocess.Popen[bytes], connection: socket.socket) -> None:
    """End a process and its forks, and wait for it."""
    connection.close()
    kill(process)
    process.wait()


def receive_frame(connection: socket.socket) -> bytes:
    """One frame. Raises `OSError` if the other side has gone, or `FrameError`."""
    head = receive_exactly(connection, frames.LENGTH.size)
    return receive_exactly(connection, frames.length_of(head))
