"""Families whose definition has a pipeline: the engine's tokens are its own forward's."""

from __future__ import annotations

from pathlib import Path

import pytest

from rvllm_local import LLM, SamplingParams
from tests.support.rank_group import NUM_TOKENS, PROMPT
from tests.support.ranks import (
    PIPELINES,
    both_ways,
    needs_ring,
    save_for_pipeline,
    served_by_ranks,
)

pytestmark = needs_ring
GREEDY = SamplingParams(max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    return {family: save_for_pipeline(family, root / family) for family in PIPELINES}


@pytest.fixture(scope="module")
def tokens(folders: dict[str, Path]) -> dict[str, list[list[int]]]:
    """Each family's tokens, mlx-lm's and the engine's; one pair of ranks has all."""
    return both_ways(list(folders.values()), 2, pipeline=True)


@pytest.mark.parametrize("family", PIPELINES)
def test_a_family_says_what_mlx_lm_s_pipeline_says(
    family: str, tokens: dict[str, list[list[int]]], folders: dict[str, Path]
) -> None:
    plain, paged = tokens[family]
    assert paged == plain
    with LLM(str(folders[family]), kv_memory="16MB") as alone:
        (answer,) = alone.generate(PROMPT, GREEDY)
    assert list(answer.token_ids) == plain


def test_int8_prefixes_on_disk_outlive_a_job(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Each rank's part is of other layers, on a disk of all ranks of this machine."""
    options = {"kv_dtype": "int8", "deterministic": True, "kv_memory": 2**22}
    folder = folders["qwen2"]
    with LLM(str(folder), **options) as alone:
        (expected,) = alone.generate(PROMPT, GREEDY)
    cached = []
    for _job in range(2):
        with served_by_ranks(
            folder, pipeline=True, cache="disk", cache_dir=str(tmp_path), **options
        ) as ranks:
            (answer,) = ranks.generate(PROMPT, GREEDY)
        assert answer.token_ids == expected.token_ids
        cached.append(answer.cached_tokens)
    assert cached == [0, (len(PROMPT) - 1) // 32 * 32]
