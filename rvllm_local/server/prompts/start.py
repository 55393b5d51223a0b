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
from rvllm_local.models.locate import ModelFiles

MEMORY = 2**30  # bytes that reading a model's texts, or one piece of work, may take
_LOAD_CPU_S, _LOAD_WALL_S = 30.0, 120.0


def start(
    files: ModelFiles,
) -> tuple[subprocess.Popen[bytes], socket.socket, frames.TextFacts]:
    """A process that has read the model's tokenizer, and what it says of it."""
    ours, theirs = socket.socketpair()
    module = "rvllm_local.conversation.prompt_process"
    command = [sys.executable, "-P", "-m", module, str(theirs.fileno())]
    with contextlib.ExitStack() as on_failure, theirs:
        on_failure.callback(ours.close)
        process = subprocess.Popen(
            [*command, str(os.getpid())],
            env=child_environment(os.environ),
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        on_failure.callback(stop, process, ours)
        load = frames.Load(files.kind, str(files.path), files.name, _LOAD_CPU_S, MEMORY)
        ours.settimeout(_LOAD_WALL_S)
        loaded = None
        with contextlib.suppress(OSError, FrameError):
            ours.sendall(frames.encode(load))
            loaded = frames.decode(_received_frame(ours), frames.LOADED)
        if loaded is None or (loaded.facts is None and loaded.refused is None):
            raise ModelFileError(
                f"the tokenizer or chat template of {files.name} cannot be used: "
                f"reading it takes more than {_LOAD_CPU_S:g} s or "
                f"{MEMORY // 2**20} MB, or makes its library abort"
            )
        if loaded.facts is None:
            assert loaded.refused is not None
            raise loaded.refused.error()
        ours.settimeout(None)
        on_failure.pop_all()
    return process, ours, loaded.facts


def stop(process: subprocess.Popen[bytes], connection: socket.socket) -> None:
    """End the process and its forks."""
    connection.close()
    if process.poll() is None:  # otherwise the number may be another's by now
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _received_frame(connection: socket.socket) -> bytes:
    """One frame. Raises `OSError` if the other side has gone."""
    head = _received(connection, frames.LENGTH.size)
    return _received(connection, frames.length_of(head))


def _received(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = connection.recv(min(count - len(data), 2**20))
        if not part:
            raise ConnectionError("the process has gone")
        data += part
    return bytes(data)
