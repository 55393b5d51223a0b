"""Temporary folders that go even where their process was killed: the next one sweeps."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "rvllm-scratch-"


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """A private folder for this process. Removes what killed processes have left."""
    for old in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if _is_left_behind(old):
            shutil.rmtree(old, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-")


def _is_left_behind(folder: Path) -> bool:
    """True for a folder of this user whose process is gone."""
    owner = folder.name.removeprefix(_PREFIX).partition("-")[0]
    if not owner.isdecimal():
        return False
    with contextlib.suppress(OSError):
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            return False
    try:
        os.kill(int(owner), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return False
