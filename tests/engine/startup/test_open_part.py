"""A rank's part of a model takes what it is, and nothing that loading left behind."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from rvllm_local import host
from rvllm_local.engine.startup.open_part import open_part
from rvllm_local.models.locate import locate
from rvllm_local.options import EngineOptions
from tests.support.tiny import save_tiny


def test_freed_memory_is_given_back_once_a_part_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny("llama", tmp_path / "llama", seed=1)
    kept: list[int] = []
    monkeypatch.setattr(host, "trim_heap", lambda: kept.append(mx.get_cache_memory()))
    options = EngineOptions(kv_memory=4 * 2**20, max_rows=2)
    part = open_part(locate(str(folder)), options, mx.distributed.init())
    assert kept == [0, 0]  # after loading, and after the check
    assert mx.get_cache_memory() == 0
    assert part.num_blocks
