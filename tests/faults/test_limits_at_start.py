"""Limits that cannot be are refused at the start, with the arithmetic, and cleanly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rvllm_local import LLM, SamplingParams
from rvllm_local.errors import ConfigError, MemoryBudgetError
from tests.support.tiny import save_tiny

REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"kv_memory": 1}, MemoryBudgetError, "1 bytes is too small.*raise kv_memory"),
    ({"kv_memory": "20KB"}, MemoryBudgetError, "too small.*raise kv_memory"),
    ({"kv_memory": "900000GB"}, MemoryBudgetError, "KV arena .* budget is .* - .* ="),
    ({"max_rows": 10**8}, MemoryBudgetError, "scratch .* budget is .* - .* ="),
    ({"context_length": 999_999_999}, ConfigError, "999999999.*positions"),
    ({"context_length": 0}, ConfigError, "context_length"),
    ({"context_length": 1}, ConfigError, "context_length cannot be 1.*least 32"),
    ({"context_length": 31}, ConfigError, "context_length cannot be 31.*least 32"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    save_tiny("llama", path, seed=2)
    return path


@pytest.mark.parametrize(("options", "kind", "message"), REFUSED)
def test_it_is_refused_with_the_arithmetic(
    folder: Path, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        LLM(str(folder), **options)


@pytest.mark.parametrize("length", [32, 33, 40])
def test_a_short_context_starts(folder: Path, length: int) -> None:
    with LLM(str(folder), kv_memory="4MB", context_length=length) as llm:
        params = SamplingParams(max_tokens=1, prompt_logprobs=0)
        assert len(llm.generate([5], params)[0].token_ids) <= 1
        assert llm.generate([5], SamplingParams(max_tokens=0, prompt_logprobs=0))


def rvllm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rvllm_local.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=dict(os.environ),
    )


def test_a_refusal_ends_the_process_cleanly(folder: Path) -> None:
    """The engine's thread has ended before the interpreter does: no abort in MLX."""
    for _ in range(3):
        done = rvllm("run", str(folder), "hi", "--kv-memory", "900000GB")
        assert done.returncode == 2 and "budget is" in done.stderr
        assert "terminate" not in done.stderr


def test_the_server_ends_as_well(folder: Path) -> None:
    done = rvllm("serve", str(folder), "--port", "0", "--kv-memory", "1")
    assert done.returncode == 2 and "raise kv_memory" in done.stderr
