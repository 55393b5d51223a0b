"""How many rows a call of the deterministic mode has, by what the logits depend on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import pytest

from rvllm_local.attention.geometry import DecodeRow
from rvllm_local.engine.decode_batch import row_groups
from rvllm_local.engine.startup.selfcheck import make_rows_independent
from rvllm_local.memory.blocks import SCRATCH_BLOCK, BlockTable
from rvllm_local.memory.layout import KVLayout
from rvllm_local.memory.state import RecurrentState
from rvllm_local.memory.tables import SequenceTables

LAYOUT = KVLayout((), ())


def tables() -> SequenceTables:
    return SequenceTables((BlockTable([SCRATCH_BLOCK]),), RecurrentState())


class Runner:
    """Its logits are made of a row's position, its place and the number of rows."""

    def __init__(self, noise: Callable[[int, int], float]) -> None:
        self._noise = noise
        self.row_group: int | None = None
        self.pads = True

    def make_deterministic(self, row_group: int, *, pads: bool = True) -> None:
        self.row_group, self.pads = row_group, pads

    def prefill(self, *_given: object) -> None:
        pass

    def decode(self, rows: Sequence[DecodeRow]) -> mx.array:
        size = len(rows)
        if self.pads:
            size = self.row_group or size
        logits = [
            [row.position + self._noise(place, size)] for place, row in enumerate(rows)
        ]
        return mx.array(logits)


class KV:
    def new_sequence(self) -> SequenceTables:
        return tables()

    def grow(self, *_given: object) -> None:
        pass

    release = grow


@pytest.mark.parametrize(
    ("noise", "tries_fewer", "expected"),
    [
        (lambda place, size: 0.0, True, (16, False)),
        (lambda place, size: 0.0, False, (16, True)),
        (lambda place, size: float(size == 1), True, (16, True)),
        (lambda place, size: float(size == 12), True, (16, True)),
        (lambda place, size: float(place == size - 1 > 0), True, (1, True)),
    ],
    ids=["nothing", "nothing asked", "a row alone", "some size", "its place"],
)
def test_rows_of_a_call(
    noise: Callable[[int, int], float],
    tries_fewer: bool,
    expected: tuple[int, bool],
) -> None:
    runner: Any = Runner(noise)
    kv: Any = KV()
    make_rows_independent(runner, kv, 100, tries_fewer=tries_fewer)
    assert (runner.row_group, runner.pads) == expected


def test_groups_without_padding_are_as_long_as_their_rows() -> None:
    rows = [DecodeRow(tables(), position, 0) for position in range(20)]
    padded = row_groups(LAYOUT, rows, 16)
    assert [(len(group), real) for group, real in padded] == [(16, 16), (16, 4)]
    exact = row_groups(LAYOUT, rows, 16, pads=False)
    assert [(len(group), real) for group, real in exact] == [(16, 16), (4, 4)]
