"""Short turns of the two benchmarks of the server: agents in a loop, and busy streams beside silent ones."""

from __future__ import annotations

from pathlib import Path

from benchmarks import agent_loop, idle_streams
from rvllm_local.options import EngineOptions
from tests.support.api import served
from tests.support.tiny import save_tiny


def test_a_tool_loop_parses_and_finds_its_prefix(tmp_path: Path) -> None:
    options = EngineOptions(
        kv_memory=24_000_000, max_rows=4, prefill_chunk=256, max_waiting=8
    )
    with served(
        {"tiny": save_tiny("llama", tmp_path / "tiny")}, options=options
    ) as running:
        found = agent_loop.run(
            f"http://127.0.0.1:{running.port}", clients=3, turns=4, max_tokens=500
        )
    assert found["calls"] == 12 and not found["unparsed"] and not found["misses"]


def test_silent_streams_cost_busy_ones_nothing(tmp_path: Path) -> None:
    found = idle_streams.measure(tmp_path, idle=100, active=8, seconds=2)
    assert not found["errors"] and found["tokens"] == 8 * 2 * idle_streams.STEPS_PER_S
    # What it adds to a token is a benchmark's figure: tests share their machine.
    assert found["rss_after"] < 1.1 * found["rss_before"]
