"""Packages of npm for tests, installed once into the user's cache, side by side.

Where npm is missing or the registry cannot be reached, the test is skipped and says so.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import platformdirs
import pytest

from tests.support.installed import put_in_place

_TIMEOUT_S = 240
CACHE = platformdirs.user_cache_path("rvllm") / "tests" / "npm"


class Packages:
    """Installs sets of packages in the background."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor()
        self._folders: dict[tuple[str, ...], Future[Path]] = {}

    def begin(self, *packages: str) -> None:
        """Begin to install pinned packages, such as `openai@1.0.0`, into one folder."""
        if packages not in self._folders:
            self._folders[packages] = self._pool.submit(_install, packages)

    def folder(self, *packages: str) -> Path:
        """The folder whose `node_modules` holds the packages. Skips the test if none."""
        self.begin(*packages)
        try:
            return self._folders[packages].result()
        except subprocess.TimeoutExpired:
            pytest.skip("the package registry is too slow")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"npm cannot install here: {type(error).__name__}")

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def _install(packages: tuple[str, ...]) -> Path:
    folder = CACHE / re.sub(r"[^a-zA-Z0-9.]+", "-", " ".join(packages)).strip("-")
    if folder.is_dir():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=".new-") as parent:
        made = Path(parent) / "prefix"
        made.mkdir()
        options = ["--no-audit", "--no-fund", "--prefix", str(made)]
        subprocess.run(
            ["npm", "install", *options, *packages],
            check=True,
            capture_output=True,
            timeout=_TIMEOUT_S,
        )
        put_in_place(made, folder)
    return folder
