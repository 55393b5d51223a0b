"""A disk that stands still holds up the requests that need it, and nobody else."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from rvllm_local import LLM, SamplingParams
from rvllm_local.memory.disk_cache import BlockStore
from tests.support.tiny import save_tiny

GREEDY = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
PROMPT = [3 + index * 7 % 90 for index in range(300)]


def opened(folder: Path, cache: Path) -> LLM:
    return LLM(
        str(folder), kv_memory="8MB", prefill_chunk=64, cache="disk", cache_dir=cache
    )


@pytest.mark.parametrize("arch", ["llama", "gemma3_text"])
def test_streams_go_on_while_a_disk_stands_still(
    arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny(arch, tmp_path / "model", seed=2)
    with opened(tmp_path / "model", tmp_path / "cache") as llm:
        expected = llm.generate(PROMPT, GREEDY)[0].token_ids
        alone = llm.generate([9, 8, 7], GREEDY)[0].token_ids
    disk_works, has_begun = threading.Event(), threading.Event()
    real = BlockStore.get

    def get(self: BlockStore, key: bytes) -> bytearray | None:
        assert threading.current_thread().name != "rvllm-engine"
        has_begun.set()
        assert disk_works.wait(60)
        return real(self, key)

    monkeypatch.setattr(BlockStore, "get", get)
    with opened(tmp_path / "model", tmp_path / "cache") as llm:
        restored = llm.stream(PROMPT, GREEDY)
        assert has_begun.wait(60)
        assert llm.generate([9, 8, 7], GREEDY)[0].token_ids == alone
        disk_works.set()
        events = list(restored)
        tokens = [token for event in events for token in event.token_ids]
        assert tuple(tokens) == expected
        assert events[0].cached_tokens >= 256
        stats = llm.stats()
        assert stats["blocks_free"] == stats["blocks_total"]


def test_a_request_that_waits_for_the_disk_can_be_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny("gemma3_text", tmp_path / "model", seed=2)
    with opened(tmp_path / "model", tmp_path / "cache") as llm:
        expected = llm.generate(PROMPT, GREEDY)[0].token_ids
    disk_works, has_begun = threading.Event(), threading.Event()
    real = BlockStore.get

    def get(self: BlockStore, key: bytes) -> bytearray | None:
        has_begun.set()
        assert disk_works.wait(60)
        return real(self, key)

    monkeypatch.setattr(BlockStore, "get", get)
    with opened(tmp_path / "model", tmp_path / "cache") as llm:
        stream = llm.stream(PROMPT, GREEDY)
        assert has_begun.wait(60)
        stream.close()  # type: ignore[attr-defined]
        llm.generate([9], SamplingParams(max_tokens=1))
        stats = llm.stats()
        assert stats["blocks_free"] == stats["blocks_total"]
        disk_works.set()
        assert llm.generate(PROMPT, GREEDY)[0].token_ids == expected
