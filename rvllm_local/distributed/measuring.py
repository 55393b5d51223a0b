"""Measures what a sum over all ranks takes: of one row, and of a large array."""

from __future__ import annotations

import time
from dataclasses import dataclass

import mlx.core as mx

_ROW = 4096  # float32 numbers, as one row of a model of this width
_LARGE = 4 * 2**20
_ROWS, _LARGE_ONES = 50, 3


@dataclass(frozen=True, slots=True)
class SumTimes:
    """Seconds that one sum of `_ROW` numbers takes, and bytes a second of a large one."""

    row_s: float
    bytes_per_s: float


def measure(group: mx.distributed.Group) -> SumTimes:
    """All ranks call this together. The first sum of each size is not counted."""
    row_s = _seconds(group, _ROW, _ROWS)
    large_s = _seconds(group, _LARGE, _LARGE_ONES)
    return SumTimes(row_s, 4 * _LARGE / large_s)


def _seconds(group: mx.distributed.Group, size: int, count: int) -> float:
    """The mean of one sum, its synchronisation included."""
    numbers = mx.ones(size)
    mx.eval(mx.distributed.all_sum(numbers, group=group))
    began = time.perf_counter()
    for _ in range(count):
        mx.eval(mx.distributed.all_sum(numbers, group=group))
    return (time.perf_counter() - began) / count
