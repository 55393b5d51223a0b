"""Files that only stand in for a model's: what Git or a web server left in their place."""

from __future__ import annotations

from pathlib import Path

from rvllm_local.errors import ModelFileError

_LFS = b"version https://git-lfs"
_PAGES = (b"<!doctype html", b"<html")


def stand_in(path: Path) -> str | None:
    """What the file is in place of what its name says; None if it may be that."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError:
        return None
    if head.startswith(_LFS):
        return (
            "is Git's pointer to a file and not the file; run `git lfs pull` in its "
            "folder, or fetch the model with `rvllm pull`"
        )
    if head.lstrip().lower().startswith(_PAGES):
        return (
            "is a web page and not the file; the address that it came from needs "
            "another link or a token"
        )
    return None


def refuse_stand_in(path: Path) -> None:
    """Raise `ModelFileError` for such a file."""
    what = stand_in(path)
    if what is not None:
        raise ModelFileError(f"{path} {what}")
