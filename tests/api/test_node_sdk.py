"""The official openai client for Node goes through a session, where there is a Node."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

VERSION = "7.57.0"
SESSION = Path(__file__).parent / "node" / "session.mjs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the client installed."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs Node and npm")
    found = tmp_path_factory.mktemp("node")
    command = [
        "npm",
        "install",
        "--no-audit",
        "--no-fund",
        "--prefix",
        str(found),
        f"openai@{VERSION}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip("the package registry cannot be reached")
    shutil.copy(SESSION, found)
    return found


def test_the_session_runs_to_its_end(address: str, folder: Path) -> None:
    command = ["node", SESSION.name, address]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=200
    )
    assert done.stdout.strip() == "done", done.stderr
