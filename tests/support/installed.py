"""Packages that tests install once, into folders that several processes may make."""

from __future__ import annotations

from pathlib import Path


def put_in_place(made: Path, folder: Path) -> None:
    """Give what was made its name at once: nobody sees half an installation.

    Where another process was first, its folder stays.
    """
    try:
        made.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
