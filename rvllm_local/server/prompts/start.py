"""Starts and ends the process in which a model's prompts are made."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys

from rvllm_local.clients.process.connection import child_environment
from rvllm_local.clients.process.frames import FrameError
from rvllm_local.conversation import prompt_frames as frames
from rvllm_local.errors import ModelFileError
from rvllm_local.forked_work import receive_exactly
from rvllm_local.models.locate import ModelFiles

MEMORY = 2**30  # bytes that reading a model's texts, or one piece of work, may take
_LOAD_CPU_S = 30.0
_LOAD_WALL_S = 60.0
Started = tuple[subprocess.Popen[bytes], socket.socket, frames.TextFacts]


def start(files: ModelFiles) -> Started:
    """A process that has read the model's tokenizer, and what it says of it.

    Raises `ModelFileError` or `UnsupportedModelError` where that fails.
    """
    process, connection = _spawned()
    try:
        facts = _facts_from(connection, files)
    except BaseException:
        stop(process, connection)
        raise
    return process, connection, facts


def _spawned() -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair()
    command = [
        sys.executable,
        "-P",
        "-m",
        "rvllm_local.conversation.prompt_process",
        str(theirs.fileno()),
        str(os.getpid()),
    ]
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


def _facts_from(connection: socket.socket, files: ModelFiles) -> frames.TextFacts:
    """Have the process read the model."""
    load = frames.Load(
        files.kind,
        str(files.path),
        files.name,
        _LOAD_CPU_S,
        MEMORY,
    )
    connection.settimeout(_LOAD_WALL_S)
    loaded = frames.Loaded()
    with contextlib.suppress(OSError, FrameError):
        connection.sendall(frames.encode(load))
        body = _received_frame(connection)
        loaded = frames.decode(body, frames.LOADED)
    connection.settimeout(None)
    if loaded.refused is not None:
        raise loaded.refused.error()
    if loaded.facts is None:
        megabytes = MEMORY // 2**20
        raise ModelFileError(
            f"the tokenizer or chat template of {files.name} cannot be used: "
            f"reading it takes more than {_LOAD_CPU_S:g} s or "
            f"{megabytes} MB, or makes its library abort"
        )
    return loaded.facts


def stop(process: subprocess.Popen[bytes], connection: socket.socket) -> None:
    """End the process and its forks."""
    connection.close()
    if process.poll() is None:  # otherwise the number may be another's by now
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _received_frame(connection: socket.socket) -> bytes:
    """One frame. Raises `OSError` if the other side has gone."""
    head = receive_exactly(connection, frames.LENGTH.size)
    return receive_exactly(connection, frames.length_of(head))
