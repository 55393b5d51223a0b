"""Slow calls are timed by few of them."""

from __future__ import annotations

import mlx.core as mx
import pytest

from rvllm_local.models.timed_calls import busy_seconds


class Device:
    """Its clock goes on by `each` seconds a call."""

    def __init__(self, each: float) -> None:
        self._each = each
        self.calls = 0
        self._read = 0

    def call(self) -> mx.array:
        self.calls += 1
        return mx.zeros(1)

    def clock(self) -> float:
        if self._read % 2 == 0:  # a round begins: its calls were described before
            self._before = self._ended
        self._read += 1
        self._ended = self.calls
        is_end = self._read % 2 == 0
        return self._each * (self.calls - self._before) if is_end else 0.0

    _before = 0
    _ended = 1  # the first call compiles and is not timed


@pytest.mark.parametrize(("each", "calls"), [(1e-5, 2 + 24), (3e-3, 2 + 9), (1.0, 5)])
def test_slow_calls_are_made_less_often(each: float, calls: int) -> None:
    device = Device(each)
    assert busy_seconds(device.call, device.clock) == pytest.approx(each)
    assert device.calls == calls
