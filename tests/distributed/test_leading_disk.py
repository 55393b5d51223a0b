"""Each rank has its part of a prefix on disk: all have it, or it is computed again.

Both ranks are in one process, with a folder each.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from rvllm_local import SamplingParams
from rvllm_local.clients.contract import make_requests
from rvllm_local.options import EngineOptions
from rvllm_local.types import StreamEvent
from tests.support.rank_pair import Pair, rank_pair
from tests.support.ranks import save_for_ranks

PROMPT = [(5 * index * index + index) % 380 for index in range(100)]
NUM_FULL = 3  # blocks of the prompt
GREEDY = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_for_ranks("llama", tmp_path_factory.mktemp("m") / "llama")


def options_with(cache_dir: Path) -> EngineOptions:
    return EngineOptions(
        kv_memory=2**20, max_rows=2, cache="disk", cache_dir=str(cache_dir)
    )


def answered(pair: Pair) -> tuple[list[int], int]:
    """Greedy tokens after the prompt, and how many of its tokens were cached."""
    events: list[StreamEvent] = []
    (request,) = make_requests(PROMPT, GREEDY)
    pair.core.add(request, events.append)
    while pair.core.has_work:
        pair.core.step()
    while pair.core.has_idle_work:
        pair.core.idle()
    tokens = [token for event in events for token in event.token_ids]
    return tokens, pair.core.explain(request.request_id)[0].cached_tokens


def prompt_contents(pair: Pair) -> tuple[list[bytes], list[bytes]]:
    """The prompt's full blocks, as rank 0 has them cached and as the other one does."""
    ids = sorted(pair.core._kv.indexes[0]._blocks.values())
    ours = pair.ours.runner.block_io.save_blocks(0, ids)
    return ours, pair.theirs.runner.block_io.save_blocks(0, ids)


def test_a_prefix_outlives_a_job_if_all_ranks_have_it(
    folder: Path, tmp_path: Path
) -> None:
    here, there = options_with(tmp_path / "here"), options_with(tmp_path / "there")
    with rank_pair(folder, here, there) as pair:
        expected, cached = answered(pair)
        assert cached == 0
    with rank_pair(folder, here, there) as pair:
        tokens, cached = answered(pair)
        ours, theirs = prompt_contents(pair)
    assert (tokens, cached) == (expected, NUM_FULL * 32)
    assert len(ours) >= NUM_FULL
    assert ours == theirs
    # The other machine has lost its disk: nothing of rank 0's is of use.
    with rank_pair(folder, here, options_with(tmp_path / "new")) as pair:
        tokens, cached = answered(pair)
        ours, theirs = prompt_contents(pair)
        pair.core.check_integrity()
    assert (tokens, cached) == (expected, 0)
    assert ours == theirs
    # It was written there anew.
    with rank_pair(folder, here, options_with(tmp_path / "new")) as pair:
        assert answered(pair) == (expected, NUM_FULL * 32)
