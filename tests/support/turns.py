"""Servers over an engine that calls `weather` once a turn, for tests of clients' own loops."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rvllm_local.models.locate import ModelFiles
from rvllm_local.text.tokenizer_files import read_tokenizer
from tests.support.agent_engine import AgentEngine, Play
from tests.support.api import Running, served

CITY = "Lisbon"
PLAY = Play("weather", {"city": CITY}, num_calls=1)


@contextmanager
def weather_server(tiny: Path) -> Iterator[tuple[Running, AgentEngine]]:
    """A server with default flags, and the engine that plays behind it."""
    tokenizer = read_tokenizer(ModelFiles("folder", tiny, "tiny"))
    engine = AgentEngine(tokenizer, PLAY, 100_000)
    with served({"tiny": tiny}, opener=lambda files, options: engine) as running:
        yield running, engine
