"""The folder that holds models, notes and leases, and safe ways to put something there.

The folder is an argument everywhere. The environment is read in one place, for callers
that give none. Nothing here writes to the environment.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rvllm_local.config import default_cache_dir


def default_cache_folder() -> Path:
    """RVLLM_CACHE_DIR, or the user's cache folder."""
    if "RVLLM_CACHE_DIR" in os.environ:
        return Path(os.environ["RVLLM_CACHE_DIR"])
    return default_cache_dir()


def models_folder(cache_dir: Path | None = None) -> Path:
    """The folder of models below `cache_dir`, or below the default folder."""
    return (cache_dir or default_cache_folder()) / "models"


def sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A private folder beside the target, removed whatever happens.

    What killed processes left in `folder` is removed too.
    """
    for old in folder.glob(".staging-*"):
        if is_left_behind(old):
            shutil.rmtree(old, ignore_errors=True)
    path = Path(tempfile.mkdtemp(prefix=f".staging-{os.getpid()}-", dir=folder))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def is_left_behind(staged: Path) -> bool:
    """True for a private folder whose process is gone."""
    owner = staged.name.split("-")[1]
    return owner.isdecimal() and not _is_running(int(owner))


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
