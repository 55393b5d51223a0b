"""The scheduler over many random requests: nobody starves, no block is lost, the step's bounds hold."""

from __future__ import annotations

import mlx.core as mx
from hypothesis import given, settings
from hypothesis import strategies as st

from rvllm_local.engine.detokenizer import StreamingDetokenizer
from rvllm_local.engine.scheduler import Scheduler
from rvllm_local.engine.sequence import Sequence, SequenceTimings
from rvllm_local.memory.arena import KVShape
from rvllm_local.memory.blocks import BLOCK_TOKENS
from rvllm_local.memory.layout import KVLayout, LayerSlot
from rvllm_local.memory.prefix import KeyChain, root_key
from rvllm_local.memory.swap import Swapped
from rvllm_local.memory.tables import KVTables
from rvllm_local.types import Request, SamplingParams

LAYOUT = KVLayout(
    (KVShape(1, 1, 8, 8, None, mx.float32), KVShape(1, 1, 8, 8, 48, mx.float32)),
    (LayerSlot(0, 0), LayerSlot(1, 0)),
)
CHUNK = 40


class PlainText:
    """A tokenizer of bytes, enough for a detokenizer. No token ends a turn."""

    end_token_ids: frozenset[int] = frozenset()

    def id_to_bytes(self, token_id: int) -> bytes | None:
        return bytes([token_id % 256])


class NoContent:
    """A KV cache without arrays: nothing is cached, and swapping moves only block counts."""

    def __init__(self, kv: KVTables) -> None:
        self.kv = kv

    def count_shared_blocks(self, sequence: Sequence) -> tuple[int, ...]:
        return tuple(0 for _ in self.kv.pools)

    def extend_prefix(self, sequence: Sequence) -> None:
        pass

    def attach_prefix(self, sequence: Sequence) -> None:
        pass

    def swap_out(self, sequence: Sequence) -> None:
        sequence.swapped = tuple(
            tuple(Swapped(0, 0) for _ in table.block_ids)
            for table in sequence.tables.groups
        )
        self.kv.release(sequence.tables)

    def swap_in(self, sequence: Sequence) -> None:
        assert sequence.swapped is not None
        for pool, table, parts in zip(
            self.kv.pools, sequence.tables.groups, sequence.swapped
        ):
            table.block_ids.extend(pool.allocate(len(parts)))
        sequence.swapped = None


def setup(
    num_blocks: tuple[int, int] = (9, 9), max_rows: int = 4
) -> tuple[KVTables, Scheduler]:
    kv = KVTables(LAYOUT, num_blocks)
    return kv, Scheduler(kv, NoContent(kv), max_rows=max_rows, prefill_chunk=CHUNK)


def sequence(
    kv: KVTables,
    num_prompt: int,
    num_output: int,
    *,
    order: int = 0,
    priority: int = 0,
    arrived: float = 0.0,
) -> Sequence:
    request = Request(
        f"r{order}",
        tuple(range(num_prompt)),
        SamplingParams(max_tokens=num_output),
        seed=0,
        priority=priority,
    )
    detokenizer = StreamingDetokenizer(PlainText(), ())
    return Sequence(
        request,
        num_prompt + num_output,
        kv.new_sequence(),
        detokenizer,
        lambda event: None,
        KeyChain(root_key("test")),
        SequenceTimings(arrived),
        order,
    )


def finish(kv: KVTables, scheduler: Scheduler, row: Sequence) -> None:
    scheduler.remove(row)
    kv.release(row.tables)


def run_step(kv: KVTables, scheduler: Scheduler, budget: int) -> list[Sequence]:
    """Run one step as the core would; return the sequences that ended."""
    plan = scheduler.schedule(budget)
    assert sum(chunk.num_tokens for chunk in plan.prefills) <= max(budget, CHUNK)
    assert not plan.is_empty
    ended = []
    for chunk in plan.prefills:
        chunk.sequence.num_computed += chunk.num_tokens
        kv.trim_windows(chunk.sequence.tables, chunk.sequence.num_computed)
    for row in plan.decodes:
        row.num_computed += 1
        row.token_ids.append(0)
        kv.trim_windows(row.tables, row.num_computed)
        if len(row.token_ids) == row.max_total:
            finish(kv, scheduler, row)
            ended.append(row)
    return ended


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 150), st.integers(1, 60), st.integers(-1, 1)),
        min_size=1,
        max_size=12,
    ),
    budget=st.integers(1, 200),
    cancels=st.sets(st.integers(0, 11)),
)
def test_every_request_ends_and_every_block_comes_back(
    shapes: list[tuple[int, int, int]], budget: int, cancels: set[int]
) -> None:
    kv, scheduler = setup()
    sequences = [
        sequence(kv, prompt, output, order=order, priority=priority)
        for order, (prompt, output, priority) in enumerate(shapes)
    ]
    sequences = [
        row for row in sequences if row.max_total <= scheduler.longest_sequence
    ]
    for row in sequences:
        scheduler.add(row)
    cancelled = [row for index, row in enumerate(sequences) if index in cancels]
    left = set(map(id, sequences))
    step = 0
    while scheduler.has_work:
        assert step < 20_000, "no progress"
        left -= {id(row) for row in run_step(kv, scheduler, budget)}
        if step % 7 == 3 and cancelled:
            row = cancelled.pop()
            finish(kv, scheduler, row)
            left.discard(id(row))
        step += 1
    assert not left
    assert kv.blocks_free == kv.blocks_total
    kv.check_integrity()


def test_a_large_request_is_passed_by_small_ones_but_not_for_ever() -> None:
    kv, scheduler = setup(max_rows=2)
    first, large = sequence(kv, 150, 50, order=0), sequence(kv, 150, 50, order=1)
    scheduler.add(first)
    scheduler.schedule(1000)
    scheduler.add(large)
    passed = 0
    for order in range(2, 60):
        small = sequence(kv, 4, 4, order=order)
        scheduler.add(small)
        scheduler.schedule(1000)
        if small not in scheduler.running:
            break
        passed += 1
        finish(kv, scheduler, small)
    assert 1 <= passed <= 20
    assert large in scheduler.waiting


def test_a_higher_priority_is_admitted_first() -> None:
    kv, scheduler = setup(max_rows=1)
    ordinary, urgent = (
        sequence(kv, 4, 4, order=0),
        sequence(kv, 4, 4, order=1, priority=5),
    )
    scheduler.add(ordinary)
    scheduler.add(urgent)
    scheduler.schedule(100)
    assert scheduler.running == [urgent]


def test_a_full_arena_preempts_the_youngest_and_resumes_it() -> None:
    kv, scheduler = setup()
    older, younger = sequence(kv, 100, 150, order=0), sequence(kv, 60, 100, order=1)
    scheduler.add(older)
    scheduler.add(younger)
    while younger not in scheduler.swapped:
        run_step(kv, scheduler, 200)
    assert younger.timings.preemptions == 1 and older in scheduler.running
    computed = younger.num_computed
    finish(kv, scheduler, older)
    scheduler.schedule(200)
    assert younger in scheduler.running and younger.num_computed == computed


def test_a_lone_row_needs_no_room_for_prompts() -> None:
    kv, scheduler = setup((6, 6))
    row = sequence(kv, 100, 20)
    scheduler.add(row)
    while not row.is_decoding:
        run_step(kv, scheduler, 200)
    assert min(pool.num_free for pool in kv.pools) < 2 * (CHUNK // BLOCK_TOKENS + 2)
    assert scheduler.is_roomy
    scheduler.add(sequence(kv, 4, 4, order=1))
    assert not scheduler.is_roomy


def test_a_short_prompt_overtakes_a_long_one_that_still_advances() -> None:
    kv, scheduler = setup((40, 40))
    long, short = sequence(kv, 1000, 4, order=0), sequence(kv, 30, 4, order=1)
    scheduler.add(long)
    scheduler.add(short)
    plan = scheduler.schedule(40)
    tokens = {chunk.sequence.order: chunk.num_tokens for chunk in plan.prefills}
    assert tokens[1] == 29 and tokens[0] > 0


def test_a_prompt_of_one_token_decodes_at_once() -> None:
    kv, scheduler = setup()
    scheduler.add(sequence(kv, 1, 4))
    plan = scheduler.schedule(100)
    assert plan.prefills == () and len(plan.decodes) == 1


def test_with_a_grain_a_chunk_fills_its_block_however_small_chunks_are_to_be() -> None:
    kv = KVTables(LAYOUT, (9, 9))
    scheduler = Scheduler(
        kv, NoContent(kv), max_rows=4, prefill_chunk=1, grain=BLOCK_TOKENS
    )
    scheduler.add(sequence(kv, 100, 4))
    (chunk,) = scheduler.schedule(1).prefills
    assert chunk.num_tokens == BLOCK_TOKENS
