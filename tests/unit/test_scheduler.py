"""The scheduler over many random requests: nobody starves, no block is lost, the step's bounds hold."""

from __future__ import annotations

import mlx.core as mx
from hypothesis import given, settings
from hypothesis import strategies as st

from rvllm_local.engine.detokenizer import StreamingDetokenizer
from rvllm_local.engine.scheduler import Scheduler
from rvllm_local.engine.sequence import Sequence
from rvllm_local.memory.arena import KVShape
from rvllm_local.memory.layout import KVLayout, LayerSlot
from rvllm_local.memory.tables import KVTables
from rvllm_local.types import Request, SamplingParams

LAYOUT = KVLayout(
    (KVShape(1, 1, 8, 8, None, mx.float32), KVShape(1, 1, 8, 8, 48, mx.float32)), (LayerSlot(0, 0), LayerSlot(1, 0))
)
CHUNK = 40


class PlainText:
    """A tokenizer of bytes, enough for a detokenizer."""

    def decode(self, ids: list[int], skip_special: bool = True) -> str:
        return bytes(token % 256 for token in ids).decode(errors="replace")

    def id_to_bytes(self, token_id: int) -> bytes | None:
        return bytes([token_id % 256])


def sequence(kv: KVTables, num_prompt: int, num_output: int) -> Sequence:
    request = Request("r", tuple(range(num_prompt)), SamplingParams(max_tokens=num_output), seed=0)
    detokenizer = StreamingDetokenizer(PlainText(), ())
    return Sequence(request, num_prompt + num_output, kv.new_sequence(), detokenizer, lambda event: None)


def run_step(scheduler: Scheduler, budget: int) -> list[Sequence]:
    """Run one step as the core would; return the sequences that ended."""
    plan = scheduler.schedule(budget)
    assert sum(chunk.num_tokens for chunk in plan.prefills) <= budget
    assert not plan.is_empty
    ended = []
    for chunk in plan.prefills:
        scheduler.advance(chunk.sequence, chunk.num_tokens)
    for row in plan.decodes:
        scheduler.advance(row, 1)
        row.token_ids.append(0)
        if len(row.token_ids) == row.max_total:
            scheduler.finish(row)
            ended.append(row)
    return ended


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 150), st.integers(1, 60)), min_size=1, max_size=12),
    budget=st.integers(1, 200),
    cancels=st.sets(st.integers(0, 11)),
)
def test_every_request_ends_and_every_block_comes_back(
    shapes: list[tuple[int, int]], budget: int, cancels: set[int]
) -> None:
    kv = KVTables(LAYOUT, (9, 9))
    scheduler = Scheduler(kv, max_rows=4, prefill_chunk=CHUNK)
    sequences = [sequence(kv, *shape) for shape in shapes]
    sequences = [row for row in sequences if row.max_total <= scheduler.longest_sequence]
    for row in sequences:
        scheduler.add(row)
    cancelled = [row for index, row in enumerate(sequences) if index in cancels]
    left = set(map(id, sequences))
    step = 0
    while scheduler.has_work:
        assert step < 20_000, "no progress"
        left -= {id(row) for row in run_step(scheduler, budget)}
        if step % 7 == 3 and cancelled:
            row = cancelled.pop()
            scheduler.finish(row)
            left.discard(id(row))
        step += 1
    assert not left
    assert kv.blocks_free == kv.blocks_total
    for pool in kv.pools:
        pool.check_integrity()


def test_first_come_first_admitted() -> None:
    kv = KVTables(LAYOUT, (9, 9))
    scheduler = Scheduler(kv, max_rows=4, prefill_chunk=CHUNK)
    large, larger, small = sequence(kv, 100, 50), sequence(kv, 200, 40), sequence(kv, 4, 4)
    for row in (large, larger, small):
        scheduler.add(row)
    scheduler.schedule(1000)
    assert scheduler.running == [large]  # `larger` waits for blocks, and `small` does not overtake it


def test_a_prompt_of_one_token_decodes_at_once() -> None:
    kv = KVTables(LAYOUT, (9, 9))
    scheduler = Scheduler(kv, max_rows=4, prefill_chunk=CHUNK)
    scheduler.add(sequence(kv, 1, 4))
    plan = scheduler.schedule(100)
    assert plan.prefills == () and len(plan.decodes) == 1
