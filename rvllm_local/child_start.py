"""Starts processes that talk with this one over a socket.

One can be started before it is known what it shall do: importing takes it longer than
anything else. It waits for its first frame, and has taken next to no memory by then.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence

Started = tuple[subprocess.Popen[bytes], socket.socket]
_PASSED = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|TMPDIR|TZ|LANG|LC_.*|XDG_.*|PYTHON.*|VIRTUAL_ENV"
    r"|(DY)?LD_LIBRARY_PATH|RVLLM_.*|MLX_.*|HF_.*|(OMP|OPENBLAS|MKL|VECLIB)_.*"
    r"|CUDA_.*|NVIDIA_.*|METAL_.*|MTL_.*|CC|CXX|SDKROOT|DEVELOPER_DIR"
    r"|SSL_CERT_(FILE|DIR)|PIP_.*|((https?|no|all)_proxy)|((HTTPS?|NO|ALL)_PROXY)"
)
_SECRET = re.compile(r"KEY|SECRET|PASSWORD")


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What a child gets to see; none of its keys.

    That is paths, libraries, proxies and the runtime's own settings.
    """
    passed = {}
    for name, value in environ.items():
        if _PASSED.fullmatch(name) and not _SECRET.search(name):
            passed[name] = value
    return passed


def module_command(module: str) -> tuple[str, ...]:
    """Runs a module; -P: no module of the current folder is imported."""
    return (sys.executable, "-P", "-m", module)


def start_child(command: Sequence[str], *, keeps_errors: bool = False) -> Started:
    """A process, and our end of its connection.

    It gets a descriptor and this process's id. The kernel ends it with the thread that
    calls this. With `keeps_errors` its standard error is a pipe. Raises `OSError`.
    """
    ours, theirs = socket.socketpair()
    errors = subprocess.PIPE if keeps_errors else subprocess.DEVNULL
    with contextlib.ExitStack() as on_failure, theirs:
        on_failure.callback(ours.close)
        process = subprocess.Popen(
            [*command, str(theirs.fileno()), str(os.getpid())],
            env=child_environment(os.environ),
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            process_group=0,  # the terminal's signals are the parent's
        )
        on_failure.pop_all()
    return process, ours


# What runs in processes of its own: the engine, a model's prompts, looks at files.
ENGINE = module_command("rvllm_local.clients.process.child")
PROMPTS = module_command("rvllm_local.conversation.prompt_process")
INSPECTION = module_command("rvllm_local.server.models.inspection_process")


class Spare:
    """A process that is started now, for the first who needs one like it.

    Make it on a thread that lives as long as the process may. For any thread.
    """

    def __init__(self, command: Sequence[str], *, keeps_errors: bool = False) -> None:
        self._lock = threading.Lock()
        self._started: Started | None = None
        with contextlib.suppress(OSError):  # whoever needs one will be told
            self._started = start_child(command, keeps_errors=keeps_errors)

    def take(self) -> Started | None:
        """The process, once; None if it is taken, or has ended."""
        with self._lock:
            started = self._started
            self._started = None
        if started is None:
            return None
        process, connection = started
        if process.poll() is None:
            return started
        _close(process, connection)
        return None

    def close(self) -> None:
        """End a process that nobody took."""
        started = self.take()
        if started is None:
            return
        process, connection = started
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        _close(process, connection)


def _close(process: subprocess.Popen[bytes], connection: socket.socket) -> None:
    connection.close()
    if process.stderr is not None:
        process.stderr.close()


def take_or_start(
    spare: Spare | None, command: Sequence[str], *, keeps_errors: bool = False
) -> Started:
    """The spare process, or a new one. Raises `OSError`."""
    started = None
    if spare is not None:
        started = spare.take()
    return started or start_child(command, keeps_errors=keeps_errors)
