"""A tiny model for the servers of these tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.served import save_thinking


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random model that thinks and calls tools."""
    return save_thinking(tmp_path_factory.mktemp("tiny") / "tiny")
