"""A process hangs that could have moved and did not; one that got no processor does not."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from rvllm_local.clients.process import watchdog
from rvllm_local.clients.process.watchdog import Watchdog
from rvllm_local.cpu_wait import CpuWait

LOOK_S = 0.5


@pytest.mark.parametrize(("num_waits", "told_at_s"), [(0, 1.5), (6, 4.5)])
def test_a_process_that_gets_no_processor_is_not_taken_for_one_that_hangs(
    monkeypatch: pytest.MonkeyPatch, num_waits: int, told_at_s: float
) -> None:
    """It beats, has work and makes no step; before some looks it had no processor."""
    now_s = 0.0
    waits = [LOOK_S] * num_waits
    clock = SimpleNamespace(monotonic=lambda: now_s)
    monkeypatch.setattr(watchdog, "time", clock)
    monkeypatch.setattr(CpuWait, "since_last", lambda _: waits.pop() if waits else 0.0)
    watch = Watchdog(os.getpid())
    watch.expect()
    told = None
    while told is None:
        now_s += LOOK_S
        watch.note_sign()
        told = watch.stalled_for(1.0, 30.0, is_busy=True)
    assert told == "had work and made no step for 1 s"
    assert now_s == told_at_s
