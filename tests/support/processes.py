"""What tests need to know of the system's processes, on Linux and macOS."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path


def is_running(pid: int) -> bool:
    """True unless the process is gone or a zombie."""
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True
    ).stdout.strip()
    return bool(state) and not state.startswith("Z")


def exists(pid: int) -> bool:
    """True for a zombie too."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def open_descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def eventually(condition: Callable[[], bool], within_s: float) -> float:
    """Wait until the condition holds and return the seconds; fail after `within_s`."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < within_s, f"not so within {within_s} s"
        time.sleep(0.01)
    return time.monotonic() - began
