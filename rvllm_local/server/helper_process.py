"""Starts and ends processes that read foreign files for the server."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys

from rvllm_local.clients.process.connection import child_environment
from rvllm_local.conversation import prompt_frames as frames
from rvllm_local.forked_work import receive_exactly

Helper = tuple[subprocess.Popen[bytes], socket.socket]


def spawn(module: str) -> Helper:
    """A process that runs `module`, and our end of its connection.

    The module gets a descriptor and this process's id. The kernel ends it with the
    thread that calls this. Raises `OSError`.
    """
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-P", "-m", module]
    command += [str(theirs.fileno()), str(os.getpid())]
    with theirs:
        try:
            process = subprocess.Popen(
                command,
                env=child_environment(os.environ),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
    return process, ours


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
