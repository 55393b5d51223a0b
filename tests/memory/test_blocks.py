"""Blocks are conserved: every id is free or held, whatever sequence of calls came before."""

from __future__ import annotations

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rvllm_local.errors import MemoryBudgetError
from rvllm_local.memory.arena import KVShape
from rvllm_local.memory.blocks import BLOCK_TOKENS, BlockPool, BlockTable, blocks_for
from rvllm_local.memory.layout import KVLayout, LayerSlot, window_blocks
from rvllm_local.memory.tables import KVTables

FULL = KVShape(2, 2, 16, 16, None, mx.float32)
WINDOWED = KVShape(2, 2, 16, 16, 40, mx.float32)
LAYOUT = KVLayout(
    (FULL, WINDOWED),
    (LayerSlot(0, 0), LayerSlot(1, 0), LayerSlot(0, 1), LayerSlot(1, 1)),
)


def test_scratch_block_is_never_handed_out() -> None:
    pool = BlockPool(5)
    assert sorted(pool.allocate(4)) == [1, 2, 3, 4]
    assert pool.num_free == 0


def test_shared_block_is_free_only_after_its_last_holder() -> None:
    pool = BlockPool(3)
    (block,) = pool.allocate(1)
    pool.share([block])
    assert pool.num_shared == 1
    pool.release([block])
    assert pool.num_free == 1
    pool.release([block])
    assert pool.num_free == 2


def test_double_release_is_caught() -> None:
    pool = BlockPool(3)
    (block,) = pool.allocate(1)
    pool.release([block])
    with pytest.raises(AssertionError, match="released twice"):
        pool.release([block])


class PoolMachine(RuleBasedStateMachine):
    """Random takes, shares and releases against a plain model of who holds what."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(9)
        self.held: list[int] = []

    @rule(count=st.integers(0, 4))
    def allocate(self, count: int) -> None:
        if count <= self.pool.num_free:
            self.held.extend(self.pool.allocate(count))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(self.held))
        self.pool.share([block])
        self.held.append(block)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(self.held))
        self.held.remove(block)
        self.pool.release([block])

    @invariant()
    def conserved(self) -> None:
        self.pool.check_integrity()
        assert self.pool.num_free == self.pool.num_total - len(set(self.held))
        assert self.pool.num_shared == sum(
            self.held.count(block) > 1 for block in set(self.held)
        )


TestPoolMachine = PoolMachine.TestCase


@given(st.lists(st.integers(1, 70), min_size=1, max_size=12))
def test_tables_cover_the_window_and_never_exceed_the_plan(chunks: list[int]) -> None:
    kv = KVTables(LAYOUT, (60, 60))
    tables = kv.new_sequence()
    computed = 0
    for chunk in chunks:
        kv.grow(tables, computed + chunk)
        full, windowed = tables.groups
        assert len(full.block_ids) == blocks_for(computed + chunk)
        oldest_visible = max(0, computed - 40 + 1)
        assert windowed.first_position <= oldest_visible
        assert len(windowed.block_ids) <= window_blocks(
            40, computed + chunk, max(chunks)
        )
        computed += chunk
        kv.trim_windows(tables, computed)
    kv.release(tables)
    assert kv.blocks_free == kv.blocks_total


def test_drop_before_keeps_the_block_that_holds_the_position() -> None:
    table = BlockTable([7, 8, 9])
    assert table.drop_before(BLOCK_TOKENS) == [7]
    assert table.first_position == BLOCK_TOKENS
    assert table.drop_before(BLOCK_TOKENS + 5) == []


@given(budget=st.integers(0, 3_000_000), rows=st.integers(1, 8))
def test_budget_is_never_exceeded(budget: int, rows: int) -> None:
    try:
        blocks = LAYOUT.split_budget(budget, context=512, max_rows=rows, chunk=64)
    except MemoryBudgetError as error:
        assert str(budget) in str(error)
        assert budget < 2 * (FULL.block_bytes + WINDOWED.block_bytes)
        return
    assert (
        sum(
            n * shape.block_bytes
            for n, shape in zip(blocks, LAYOUT.groups, strict=True)
        )
        <= budget
    )
    assert min(blocks) >= 2


def test_windows_alone_put_no_limit_on_a_sequence() -> None:
    layout = KVLayout((WINDOWED,), (LayerSlot(0, 0),))
    roomy = KVTables(layout, (window_blocks(40, 10**6, 64) + 1,))
    assert roomy.capacity_tokens(64) > 10**6
    assert KVTables(layout, (3,)).capacity_tokens(64) == 2 * BLOCK_TOKENS
