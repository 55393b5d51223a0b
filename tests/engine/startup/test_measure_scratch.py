"""The plan's scratch is measured at the start, and real work stays within it."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import mlx.core as mx
import pytest

from rvllm_local.attention.geometry import DecodeRow
from rvllm_local.engine.compiled import rows_share
from rvllm_local.engine.core import EngineCore
from rvllm_local.engine.startup import choose_runner
from rvllm_local.engine.startup.build import build_core
from rvllm_local.engine.startup.measure_scratch import apart
from rvllm_local.engine.startup.planning import plan_model
from rvllm_local.errors import MemoryBudgetError
from rvllm_local.memory.blocks import BlockTable
from rvllm_local.memory.tables import SequenceTables
from rvllm_local.models.describe import describe
from rvllm_local.models.loader import load_model
from rvllm_local.models.locate import locate
from rvllm_local.options import EngineOptions
from rvllm_local.text.tokenizer_files import read_tokenizer
from rvllm_local.types import Request, SamplingParams
from tests.support.tiny import save_tiny

OPTIONS = EngineOptions(kv_memory=8_000_000, max_rows=8, prefill_chunk=256)


def core(folder: Path, options: EngineOptions = OPTIONS) -> EngineCore:
    files = locate(str(folder))
    return build_core(load_model(files), read_tokenizer(files), options)


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path: Path = tmp_path_factory.mktemp(request.param)
    save_tiny(request.param, path, seed=2)
    return path


@pytest.mark.parametrize("deterministic", [False, True])
def test_work_stays_within_what_was_measured(folder: Path, deterministic: bool) -> None:
    """Drafts make a step as large as it may be."""
    engine = core(
        folder,
        EngineOptions(
            kv_memory=8_000_000,
            max_rows=8,
            prefill_chunk=256,
            deterministic=deterministic,
            draft="ngram",
        ),
    )
    engine.check_integrity()
    assert engine.stats()["blocks_peak"] == 0, "the measurement left traces"
    gc.collect()
    active = mx.get_active_memory()
    mx.reset_peak_memory()
    for row in range(8):
        params = SamplingParams(
            max_tokens=4,
            temperature=0.9,
            top_p=0.9,
            seed=row,
            logprobs=3,
            ignore_eos=True,
        )
        prompt = tuple(
            [5 + row]
            * (min(engine.limits.context_length, engine.limits.arena_tokens) // 2)
        )
        engine.add(Request(f"r{row}", prompt, params, seed=row), lambda _event: None)
    while engine.has_work:
        engine.step()
    scratch = engine.snapshot().memory["scratch"]
    assert 0 < mx.get_peak_memory() - active <= scratch // 2
    engine.check_integrity()


def test_a_step_that_does_not_fit_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        choose_runner, "measure_scratch", lambda *_args, **_sizes: 10**15
    )
    with pytest.raises(MemoryBudgetError, match="scratch"):
        core(folder)


@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
@pytest.mark.parametrize("arch", ["llama", "gemma3_text", "gpt_oss"])
def test_a_long_contexts_plan_is_near_what_is_measured(
    arch: str, kv_dtype: str, tmp_path: Path
) -> None:
    folder = save_tiny(arch, tmp_path / arch, seed=2)
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = 32_768
    (folder / "config.json").write_text(json.dumps(config))
    options = EngineOptions(
        kv_memory=100_000_000, kv_dtype=kv_dtype, max_rows=8, prefill_chunk=128
    )
    plan = plan_model(describe(locate(str(folder))), options)
    engine = core(folder, options)
    measured = engine.snapshot().memory["scratch"]
    engine.close("done")
    assert measured <= plan.scratch <= 1.5 * measured


def test_rows_of_a_measured_step_are_not_taken_for_drafts() -> None:
    row = DecodeRow(SequenceTables((BlockTable([1]),)), 3, 0)
    rows = apart(row, 3)
    assert [other.tables.groups for other in rows] == [row.tables.groups] * 3
    assert not rows_share(rows)
