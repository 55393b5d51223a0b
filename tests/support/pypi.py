"""Packages of PyPI for tests, in environments of their own in the user's cache.

They take minutes to install: an environment is used where it is there already, or made
where RVLLM_INSTALL_CLIENTS=1 asks for it. Otherwise, and where the index cannot be
reached, the test is skipped.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import platformdirs
import pytest

from tests.support.installed import put_in_place

_TIMEOUT_S = 280
CACHE = platformdirs.user_cache_path("rvllm") / "tests" / "pypi"


def environment(*packages: str) -> Path:
    """The Python of an environment with pinned packages, such as `ollama==0.6.3`."""
    name = re.sub(r"[^a-zA-Z0-9.]+", "-", " ".join(packages)).strip("-")
    folder = CACHE / name
    if not folder.is_dir():
        if os.environ.get("RVLLM_INSTALL_CLIENTS") != "1":
            pytest.skip("not installed; RVLLM_INSTALL_CLIENTS=1 installs " + name)
        try:
            _install(folder, packages)
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"pip cannot install here: {type(error).__name__}")
    return folder / "bin" / "python"


def download(folder: Path, *words: str) -> None:
    """Have pip fetch packages into a folder; skip the test where it cannot."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--dest", str(folder), *words]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"pip cannot fetch here: {type(error).__name__}")


def _install(folder: Path, packages: tuple[str, ...]) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=".new-") as parent:
        made = Path(parent) / "environment"
        _run(sys.executable, "-m", "venv", str(made))
        pip = (str(made / "bin" / "python"), "-m", "pip", "install", "--quiet")
        _run(*pip, "--disable-pip-version-check", *packages)
        put_in_place(made, folder)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT_S)
