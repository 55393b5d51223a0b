"""The dense copy of a prefilling prompt: whatever happens to blocks meanwhile, attention gives the same bits without it."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rvllm_local.attention.backend import AttentionCall
from rvllm_local.attention.cpu.reference import ReferenceBackend
from rvllm_local.attention.geometry import CallGeometry, call_geometry
from rvllm_local.memory.arena import Arena, KVShape
from rvllm_local.memory.blocks import BLOCK_TOKENS, BlockTable
from rvllm_local.memory.layout import KVLayout, LayerSlot
from rvllm_local.memory.tables import SequenceTables

NUM_LAYERS, KV_HEADS, DIM, NUM_BLOCKS = 2, 2, 8, 24
SLOTS = tuple(LayerSlot(0, layer) for layer in range(NUM_LAYERS))
ACTIONS = st.tuples(
    st.sampled_from(
        ["chunk", "mixed", "decode", "swap", "copy", "load", "restart", "fail"]
    ),
    st.integers(0, 2),
)


class Pair:
    """One backend that keeps copies and one that does not, fed with the same calls."""

    def __init__(self, dtype: mx.Dtype, *, quantized: bool, copy_tokens: int) -> None:
        shape = KVShape(NUM_LAYERS, KV_HEADS, DIM, DIM, None, dtype, quantized)
        self.layout, self.dtype = KVLayout((shape,), SLOTS), dtype
        self.backends = [
            ReferenceBackend([Arena(shape, NUM_BLOCKS)], tokens)
            for tokens in (copy_tokens, 0)
        ]
        self.random = np.random.default_rng(3)
        self.tables = [SequenceTables((BlockTable(),)) for _ in range(3)]
        self.lengths = [0, 0, 0]
        self.free = list(range(1, NUM_BLOCKS))

    def new(self, heads: int, rows: int, tokens: int) -> mx.array:
        return mx.array(
            self.random.standard_normal((rows, heads, tokens, DIM)).astype(np.float32)
        ).astype(self.dtype)

    def grow(self, row: int, tokens: int) -> int:
        """Room for `tokens` more, as far as there are blocks; how many there is room for."""
        table = self.tables[row].groups[0]
        while (
            self.free
            and len(table.block_ids) * BLOCK_TOKENS < self.lengths[row] + tokens
        ):
            table.block_ids.append(self.free.pop(0))
        return min(tokens, len(table.block_ids) * BLOCK_TOKENS - self.lengths[row])

    def geometry(self, rows: list[int], tokens: int) -> CallGeometry:
        return call_geometry(
            self.layout,
            [self.tables[row] for row in rows],
            [self.lengths[r] for r in rows],
            tokens,
        )

    def chunk(
        self, row: int, tokens: int = 21, layers: tuple[LayerSlot, ...] = SLOTS
    ) -> None:
        tokens = self.grow(row, tokens)
        if tokens < 2:
            self.restart(row)
            return
        geometry = self.geometry([row], tokens)
        sessions = [backend.begin(geometry) for backend in self.backends]
        for slot in layers:
            keys, values, queries = (
                self.new(KV_HEADS, 1, tokens),
                self.new(KV_HEADS, 1, tokens),
                self.new(4, 1, tokens),
            )
            for session in sessions:
                session.write(slot, keys, values)
            found, expected = (
                session.prefill(slot, queries, AttentionCall(0.3))
                for session in sessions
            )
            assert mx.array_equal(found, expected)
        self.lengths[row] += tokens if layers == SLOTS else 0

    def mixed(self, row: int) -> None:
        """A token of one sequence, and chunks of the two others, in one call."""
        parts = [((row + 1) % 3, 5), ((row + 2) % 3, 9)]
        if self.grow(row, 1) < 1 or any(
            self.grow(other, count) < count for other, count in parts
        ):
            self.restart(row)
            return
        decode, chunks = (
            self.geometry([row], 1),
            [self.geometry([other], count) for other, count in parts],
        )
        every = [
            (row, 0),
            *((other, place) for other, count in parts for place in range(count)),
        ]
        whole = call_geometry(
            self.layout,
            [self.tables[r] for r, _ in every],
            [self.lengths[r] + place for r, place in every],
            1,
        )
        sessions = [
            backend.begin_mixed(whole, decode, chunks) for backend in self.backends
        ]
        for slot in SLOTS:
            keys, values = (
                self.new(KV_HEADS, len(every), 1),
                self.new(KV_HEADS, len(every), 1),
            )
            queries = self.new(4, len(every) + 1, 1)  # one row of padding
            for session in sessions:
                session.write(slot, keys, values)
            found, expected = (
                session.decode(slot, queries, AttentionCall(0.3))
                for session in sessions
            )
            assert mx.array_equal(found, expected)
        for other, count in [(row, 1), *parts]:
            self.lengths[other] += count

    def decode(self, row: int) -> None:
        if self.grow(row, 1):
            geometry, keys, values = (
                self.geometry([row], 1),
                self.new(KV_HEADS, 1, 1),
                self.new(KV_HEADS, 1, 1),
            )
            for backend in self.backends:
                session = backend.begin(geometry)
                for slot in SLOTS:
                    session.write(slot, keys, values)
            self.lengths[row] += 1

    def swap(self, row: int) -> None:
        """Out of its blocks and into other ones; somebody else may take the old ones."""
        table = self.tables[row].groups[0]
        count = min(len(table.block_ids), len(self.free))
        old, fresh = table.block_ids[:count], self.free[:count]
        for backend in self.backends:
            backend.load_blocks(0, fresh, backend.save_blocks(0, old))
        table.block_ids[:count], self.free[:count] = fresh, old

    def copy(self, row: int) -> None:
        """The first block's content changes under the sequence."""
        blocks = self.tables[row].groups[0].block_ids
        for backend in self.backends:
            backend.copy_blocks(0, [(blocks[-1], blocks[0])] if len(blocks) > 1 else [])

    def load(self, row: int) -> None:
        """The same, by bytes from elsewhere."""
        blocks = self.tables[row].groups[0].block_ids
        for backend in self.backends:
            backend.load_blocks(0, blocks[:1], backend.save_blocks(0, blocks[-1:]))

    def restart(self, row: int) -> None:
        """The sequence ends and another one gets its blocks."""
        table = self.tables[row].groups[0]
        self.free = table.clear() + self.free
        self.lengths[row] = 0

    def fail(self, row: int) -> None:
        """A call that ends after its first layer; it is made again later."""
        self.chunk(row, layers=SLOTS[:1])


@settings(max_examples=40, deadline=None)
@given(st.lists(ACTIONS, min_size=4, max_size=30))
def test_attention_gives_the_same_bits_with_and_without_the_copy(
    actions: list[tuple[str, int]],
) -> None:
    pair = Pair(
        mx.float32, quantized=False, copy_tokens=5 * BLOCK_TOKENS
    )  # shorter than the longest contexts here
    for name, row in actions:
        getattr(pair, name)(row)


@pytest.mark.parametrize(
    ("dtype", "quantized"),
    [(mx.float32, True), (mx.bfloat16, False), (mx.float16, False)],
)
def test_every_stored_type_can_be_copied(dtype: mx.Dtype, quantized: bool) -> None:
    pair = Pair(dtype, quantized=quantized, copy_tokens=8 * BLOCK_TOKENS)
    for name in (
        "chunk",
        "chunk",
        "mixed",
        "swap",
        "chunk",
        "copy",
        "chunk",
        "load",
        "chunk",
        "restart",
        "chunk",
        "chunk",
    ):
        getattr(pair, name)(0)


def test_a_chunk_copies_only_what_is_new() -> None:
    pair = Pair(mx.float32, quantized=False, copy_tokens=8 * BLOCK_TOKENS)
    copy = pair.backends[0]._copies[0]
    stale = []
    for _ in range(6):
        pair.chunk(0)
        stale.append(copy.first_stale)
    assert stale == [21 * chunk // BLOCK_TOKENS for chunk in range(6)]


def test_a_short_prompt_does_not_take_the_copy_from_a_much_longer_one() -> None:
    pair = Pair(mx.float32, quantized=False, copy_tokens=10 * BLOCK_TOKENS)
    copy = pair.backends[0]._copies[0]
    for _ in range(12):
        pair.chunk(0)
    pair.chunk(1)
    pair.chunk(0)
    assert copy.first_stale == 12 * 21 // BLOCK_TOKENS
    for _ in range(40):  # but it gets it when the long one does not come back
        pair.restart(1)
        pair.chunk(1)
    pair.chunk(0)
    assert copy.first_stale == 0
