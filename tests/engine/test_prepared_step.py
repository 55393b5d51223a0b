"""A step's graph that was built ahead brings what it would have brought else."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from rvllm_local.attention.geometry import DecodeRow
from rvllm_local.engine.compiled import CompiledDecode
from rvllm_local.engine.decode_batch import step_tokens
from rvllm_local.memory.arena import KVShape
from rvllm_local.memory.blocks import BLOCK_TOKENS
from rvllm_local.memory.layout import KVLayout, LayerSlot
from rvllm_local.memory.tables import KVTables, SequenceTables
from rvllm_local.metal_kernels.launch import DispatchCounter

LAYOUT = KVLayout((KVShape(1, 1, 8, 8, None, mx.float32),), (LayerSlot(0, 0),))


class Shared:
    """What a step reads beside its inputs; nothing of it is an arena."""

    def __init__(self) -> None:
        self.counter = DispatchCounter()
        self.fence = mx.zeros((8,), dtype=mx.int32)
        self.arrays: list[mx.array] = []
        self.scales: list[mx.array | None] = []
        self.layers: list[mx.array] = []
        self._scratch = mx.zeros((8,))

    def scratch(self, rows: int, max_blocks: object) -> mx.array:
        return self._scratch


class Steps:
    """Compiled steps whose tokens are sums of what they are given."""

    def __init__(self, *, prepares: bool, rotates: bool = True) -> None:
        self.backend = Shared()
        self.described = 0
        self.step = CompiledDecode(
            None,  # type: ignore[arg-type]
            LAYOUT,
            self.backend,  # type: ignore[arg-type]
            rotates=rotates,
            compile_step=lambda _: self._describe,
            prepares=prepares,
        )
        self.tables = KVTables(LAYOUT, [16])

    def _describe(
        self,
        tokens: mx.array,
        positions: mx.array,
        descriptors: list[mx.array],
        fence: mx.array,
        *_: Any,
    ) -> tuple[mx.array, mx.array, tuple[()]]:
        self.described += 1
        sums = tokens * 1000 + mx.sum(descriptors[0]) + mx.sum(positions)
        return sums, fence + 1, ()

    def run(self, rows: list[DecodeRow], previous: mx.array | None = None) -> list[int]:
        size = self.step.padded_rows(len(rows))
        tokens = step_tokens(rows, previous, size)
        drawn: list[int] = self.step.greedy(rows, tokens, len(rows)).tolist()  # type: ignore[assignment]
        self.step.prepare()
        return drawn


def drafting_rows(tables: SequenceTables, start: int, count: int) -> list[DecodeRow]:
    return [
        DecodeRow(tables, start + ahead, 7 * ahead + start) for ahead in range(count)
    ]


@pytest.mark.parametrize("rotates", [True, False])
def test_it_brings_the_same(rotates: bool) -> None:
    """Over changes of depth, a new block, and a step whose token is on the device."""
    plain = Steps(prepares=False, rotates=rotates)
    ahead = Steps(prepares=True, rotates=rotates)
    answers: list[list[list[int]]] = []
    for steps in (plain, ahead):
        tables = steps.tables.new_sequence()
        found = []
        position = 20
        for count in (4, 4, 3, 6, 6, 1, 6):
            steps.tables.grow(tables, position + count)
            found.append(steps.run(drafting_rows(tables, position, count)))
            position += count
        assert position // BLOCK_TOKENS > 0
        on_device = [DecodeRow(tables, position, 0, 0)]
        steps.tables.grow(tables, position + 1)
        found.append(steps.run(on_device, mx.array(np.array([5], dtype=np.int32))))
        answers.append(found)
    assert answers[0] == answers[1]


def test_a_graph_is_built_once_a_step_while_they_are_alike() -> None:
    steps = Steps(prepares=True)
    tables = steps.tables.new_sequence()
    steps.tables.grow(tables, 100)
    for number in range(4):
        steps.run(drafting_rows(tables, 4 * number, 4))
        assert steps.described == number + 2  # this one's, and the next one's


def test_what_was_prepared_before_the_arenas_changed_is_dropped() -> None:
    steps = Steps(prepares=True)
    tables = steps.tables.new_sequence()
    steps.tables.grow(tables, 100)
    steps.run(drafting_rows(tables, 0, 4))
    steps.backend.fence = mx.array([5] * 8, dtype=mx.int32)  # a prompt was computed
    steps.run(drafting_rows(tables, 4, 4))
    assert steps.backend.fence.tolist() == [6] * 8


def test_steps_without_drafts_are_not_prepared() -> None:
    steps = Steps(prepares=True)
    tables = steps.tables.new_sequence()
    steps.tables.grow(tables, 100)
    steps.run(drafting_rows(tables, 0, 1))
    assert steps.described == 1
