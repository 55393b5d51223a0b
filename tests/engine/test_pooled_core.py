"""Texts that are read beside streams: how much a step takes, and how long it rests."""

from __future__ import annotations

import mlx.core as mx
import pytest

from rvllm_local.conversation.pooled import read_requests
from rvllm_local.engine.limits import EngineLimits, Pools
from rvllm_local.engine.pooled_core import PooledCore
from rvllm_local.text.read_inputs import EncodedInput
from rvllm_local.types import StreamEvent

PACE = 10_000  # tokens a second, padding included
GAP_S = 0.02


class Device:
    """A clock, and a model that takes the time of its pace on it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.shapes: list[tuple[int, int]] = []
        self.rests: list[float] = []

    def read(self, tokens: mx.array, lengths: mx.array, kinds: mx.array) -> mx.array:
        self.shapes.append((tokens.shape[0], tokens.shape[1]))
        self.now += tokens.size / PACE
        return lengths[:, None].astype(mx.float32)

    def rest(self, seconds: float) -> None:
        self.rests.append(seconds)
        self.now += seconds


def read_all(
    lengths: list[int], beside_s: float, is_paced: bool = True
) -> tuple[Device, dict[int, StreamEvent]]:
    """Read texts of these lengths, beside streams of a gap."""
    device = Device()
    limits = EngineLimits(384, 512, 512, (), 100, pools=Pools("embed", 1, {}, None))
    core = PooledCore(
        device.read,
        limits,
        {},
        "",
        is_paced,
        clock=lambda: device.now,
        sleep=device.rest,
    )
    events: dict[int, StreamEvent] = {}
    encoded = [EncodedInput((1,) * length) for length in lengths]
    for request in read_requests(encoded, "texts", beside_s):
        core.add(request, lambda event: events.update({event.index: event}))
    while core.has_work:
        core.step()
    return device, events


def test_without_streams_batches_are_large_and_nothing_rests() -> None:
    device, events = read_all([8] * 1000, 0.0)
    assert len(events) == 1000
    assert device.rests == []
    assert len(device.shapes) < 40


def test_beside_streams_a_step_is_a_fraction_of_their_gap() -> None:
    device, events = read_all([8] * 1000, GAP_S)
    assert len(events) == 1000
    settled = [rows * width / PACE for rows, width in device.shapes[3:]]
    assert max(settled) <= 0.2 * GAP_S
    assert max(settled) > 0.05 * GAP_S, "texts are packed still"
    assert device.rests == [GAP_S] * (len(device.shapes) - 1)


def test_where_the_kernel_lets_streams_pass_nothing_is_paced() -> None:
    device, events = read_all([8] * 1000, GAP_S, is_paced=False)
    alone, _ = read_all([8] * 1000, 0.0)
    assert len(events) == 1000
    assert device.rests == []
    assert device.shapes == alone.shapes


def test_one_long_text_is_read_whole() -> None:
    device, events = read_all([400], GAP_S)
    assert device.shapes == [(1, 400)]
    assert len(events) == 1


@pytest.mark.parametrize("beside_s", [0.0, 30.0])
def test_a_rest_is_short_enough_for_commands(beside_s: float) -> None:
    device, _ = read_all([400] * 50, beside_s)
    assert max(device.rests, default=0.0) <= 0.1
