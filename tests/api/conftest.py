"""Servers in a thread: one over a tiny engine, one over an engine that only pretends and speaks slowly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rvllm_local.server.http.settings import ServerSettings
from tests.support.api import PacedClient, Running, served
from tests.support.served import save_thinking

ORIGIN = "https://example.org"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random model that thinks and calls tools."""
    return save_thinking(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="module")
def api(tiny: Path) -> Iterator[Running]:
    """A server over a tiny engine; one web origin may use it."""
    with served(
        {"tiny": tiny}, ServerSettings(port=0, allowed_origins=(ORIGIN,))
    ) as running:
        yield running


@pytest.fixture(scope="module")
def paced(tiny: Path) -> Iterator[Running]:
    """A server with short deadlines over an engine that says a word every 10 ms."""
    settings = ServerSettings(
        port=0, header_timeout_s=1.5, body_timeout_s=1.5, send_timeout_s=1.5, keepalive_s=0.1, max_connections=24,
        max_body=100_000, max_header=8192, drain_s=0.5,
    )  # fmt: skip
    with served(
        {"tiny": tiny}, settings, opener=lambda files, options: PacedClient()
    ) as running:
        running.post({"prompt": "x"}, "/tokenize")  # the model is loaded from here on
        yield running
