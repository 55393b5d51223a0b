"""A rank that makes rank 0's calls has its blocks and states, and lets go what it lets go.

Here both are in one process, and each has the whole model.
"""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pytest

from rvllm_local import SamplingParams
from rvllm_local.clients.contract import make_requests
from rvllm_local.engine.core import EngineCore
from rvllm_local.engine.startup.open_part import ModelPart
from rvllm_local.options import EngineOptions
from rvllm_local.types import StreamEvent
from tests.support.rank_pair import Pair, rank_pair
from tests.support.ranks import save_for_ranks


@pytest.fixture(scope="module", params=["llama", "qwen3_5"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    family: str = request.param
    folder = save_for_ranks(family, tmp_path_factory.mktemp("m") / family)
    kv_memory = 12 * 2 * 2 * 4 * 32 * 32 * 4  # 12 blocks of llama's, 24 of qwen3_5's
    if family == "qwen3_5":
        kv_memory //= 2
    options = EngineOptions(kv_memory=kv_memory, max_rows=6, prefill_chunk=48)
    with rank_pair(folder, options) as pair:
        yield pair


def tables_contents(part: ModelPart, block_ids: list[set[int]]) -> list[bytes]:
    contents = []
    for group, group_ids in enumerate(block_ids):
        contents += part.runner.block_io.save_blocks(group, sorted(group_ids))
    return contents


def blocks_written(core: EngineCore, num_groups: int) -> list[set[int]]:
    """Full blocks of running sequences, by group."""
    written: list[set[int]] = [set() for _ in range(num_groups)]
    for sequence in core._scheduler.running:
        if sequence.swapped is not None:
            continue
        for group, table in enumerate(sequence.tables.groups):
            full = sequence.num_computed // 32 - table.start_block
            written[group].update(table.block_ids[: max(0, full)])
    return written


def check_alike(pair: Pair) -> None:
    """What rank 0 could read of its sequences is the same on the other rank."""
    blocks = blocks_written(pair.core, len(pair.ours.parts.layout.groups))
    assert tables_contents(pair.ours, blocks) == tables_contents(pair.theirs, blocks)
    for sequence in pair.core._scheduler.running:
        state = sequence.tables.state
        if sequence.swapped is not None or not state.batch:
            continue
        other = pair.server._states.get(state.number)
        for mine, theirs in zip(state.arrays, other.arrays, strict=True):
            assert (mine is None) == (theirs is None)
            if mine is not None:
                assert mx.array_equal(mine, theirs).item()


def test_a_rank_has_what_rank_0_has_whatever_happens_to_requests(pair: Pair) -> None:
    """Forks, preemption, cancelling, warm prefixes; looked at after each step."""
    core = pair.core
    random = np.random.default_rng(5)
    shared = random.integers(0, 380, size=70).tolist()
    ended: list[StreamEvent] = []

    def sink(event: StreamEvent) -> None:
        if event.finish_reason is not None:
            ended.append(event)

    started = []
    for number in range(14):
        prompt = [*shared[: int(random.integers(1, 71))], number]
        if number % 3 == 0:
            prompt = random.integers(0, 380, size=int(random.integers(1, 60))).tolist()
        params = SamplingParams(
            max_tokens=int(random.integers(1, 60)),
            temperature=0.8,
            seed=number,
            n=2 if number % 4 == 0 else 1,
            ignore_eos=True,
        )
        requests = make_requests(prompt, params)
        for choice in requests:
            core.add(choice, sink)
        started.append(requests[0].request_id)
        for _ in range(int(random.integers(0, 6))):
            core.step()
            check_alike(pair)
        if number % 5 == 4:
            core.cancel(started[number - 1])
    while core.has_work:
        core.step()
        check_alike(pair)
    assert core.stats()["preemptions"] > 0
    assert core.stats()["prefix_hit_tokens"] > 0
    core.check_integrity()
    assert not pair.server._states._states
    assert not pair.server._swap._kept
    snapshots = pair.ours.parts.kv.snapshots
    if snapshots is not None:
        assert set(pair.server._states._snapshots) == set(snapshots._kept)
