"""One server for the tests that talk to it as clients do: a real small model, and a tiny random one that thinks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.served import rvllm_serve, save_thinking


@pytest.fixture(scope="session")
def address(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Base address of a server with `smollm2` as "default" and the random model as "thinker"."""
    thinker = save_thinking(tmp_path_factory.mktemp("models") / "thinker")
    with rvllm_serve([smollm2, thinker], "--kv-memory", "400MB", "--context-length", "2048") as (base, _):
        yield base
