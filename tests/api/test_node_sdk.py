"""The official openai client for Node goes through a session, where there is a Node."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.npm import Packages

PACKAGES = ("openai@7.59.0", "zod@4.6.7")
SESSION = Path(__file__).parent / "node" / "session.mjs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the client installed, and the session."""
    packages = Packages()
    installed = packages.folder(*PACKAGES)
    folder = tmp_path_factory.mktemp("node")
    (folder / "node_modules").symlink_to(installed / "node_modules")
    shutil.copy(SESSION, folder)
    yield folder
    packages.close()


def test_the_session_runs_to_its_end(address: str, folder: Path) -> None:
    command = ["node", SESSION.name, address]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=200
    )
    assert done.stdout.strip() == "done", done.stderr
