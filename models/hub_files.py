"""Fetches single files of a hub repository into a folder, each resumed where it stopped and checked when it is whole.

The network is huggingface_hub's: mirrors, proxies, redirects, retries, and a token that leaves with no request to
another host. What this adds is resuming across processes, and the checksum.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from rvllm_local.errors import ChecksumError, DownloadError
from rvllm_local.models.hub_api import endpoint
from rvllm_local.models.hub_plan import RemoteFile

_CHUNK = 1 << 20


class _Counted:
    """A file that tells how much is written to it, and takes no more than `largest` bytes."""

    def __init__(
        self, file: BinaryIO, told: Callable[[int], None], largest: int
    ) -> None:
        self._file, self._told, self._largest = file, told, largest

    def write(self, data: bytes) -> int:
        if self._file.tell() + len(data) > self._largest:
            raise DownloadError(
                f"more than {self._largest} bytes came for a file of that size; try again"
            )
        count = self._file.write(data)
        self._told(count)
        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def fetch_file(
    repository: str,
    commit: str,
    file: RemoteFile,
    folder: Path,
    told: Callable[[int], None],
) -> str:
    """Put one file into `folder`, which has its beginning if an earlier run was cut. Returns its sha256.

    Raises `ChecksumError`, after which nothing of it is left, `DownloadError`, or what the network raises.
    """
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    assert file.size is not None
    target, part = folder / file.name, folder / f"{file.name}.part"
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_file():
        told(target.stat().st_size)
        return _checked(repository, file, target)
    if part.is_file() and part.stat().st_size > file.size:
        part.unlink()
    with part.open("ab") as output:
        have = output.tell()
        told(have)
        if have < file.size:
            url = f"{endpoint()}/{repository}/resolve/{quote(commit, safe='')}/{quote(file.name)}"
            http_get(
                url,
                _Counted(output, told, file.size),
                resume_size=have,
                headers=build_hf_headers(),
                expected_size=file.size,
                displayed_filename=file.name,
                tqdm_class=_no_bar(),
            )
        output.flush()
        os.fsync(output.fileno())
    if part.stat().st_size != file.size:
        part.unlink()
        raise DownloadError(
            f"{repository}: {file.name} came with another size than {file.size} bytes; try again"
        )
    sha256 = _checked(repository, file, part)
    part.replace(target)
    return sha256


def _no_bar() -> type[Any]:
    """The hub's own progress bar, which is not shown: progress is told in words."""
    from tqdm import tqdm

    class NoBar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **{**options, "disable": True})

    return NoBar


def _checked(repository: str, file: RemoteFile, path: Path) -> str:
    """The file's sha256, held against what the hub promised; a wrong file is removed."""
    sha256, sha1 = (
        hashlib.sha256(),
        hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False),
    )
    with path.open("rb") as data:
        while chunk := data.read(_CHUNK):
            sha256.update(chunk)
            if file.sha256 is None:
                sha1.update(chunk)
    actual, expected = sha256.hexdigest(), file.sha256
    if expected is None:
        actual, expected = sha1.hexdigest(), file.git_sha1
    if actual != expected:
        path.unlink()
        raise ChecksumError(
            f"{repository}: {file.name} has checksum {actual}, not {expected}; it was thrown away, try again"
        )
    return sha256.hexdigest()
