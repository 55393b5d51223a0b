"""How much prefill a step may do beside rows that are answering."""

from __future__ import annotations

from rvllm_local.engine.prefill_budget import PrefillBudget
from tests.engine.test_scheduler import sequence, setup


def rows(*, decoding: bool) -> list[object]:
    kv, _ = setup()
    row = sequence(kv, 5, 5)
    row.num_computed = 4 if decoding else 0
    return [row]


def test_nobody_waits_so_a_whole_chunk_runs() -> None:
    budget = PrefillBudget(prefill_chunk=512, target_s=0.1)
    budget.record_prefill(100, 1.0)
    assert budget.for_step(rows(decoding=False)).tokens == 512  # type: ignore[arg-type]


def test_a_target_bounds_the_step_less_what_decoding_takes() -> None:
    budget = PrefillBudget(prefill_chunk=512, target_s=0.1)
    budget.record_prefill(1000, 1.0)
    budget.record_decode(1, 0.04)
    assert budget.for_step(rows(decoding=True)).tokens == 60  # type: ignore[arg-type]
    budget.record_decode(
        1, 0.5
    )  # decoding alone takes longer than the target: prefill still advances
    assert budget.for_step(rows(decoding=True)).tokens == 20  # type: ignore[arg-type]


def test_without_a_target_prefill_takes_no_longer_than_the_decode_step() -> None:
    budget = PrefillBudget(prefill_chunk=512, target_s=None)
    budget.record_prefill(1000, 1.0)
    budget.record_decode(1, 0.1)
    assert 70 <= budget.for_step(rows(decoding=True)).tokens <= 100  # type: ignore[arg-type]


def test_short_calls_say_nothing_about_speed() -> None:
    budget = PrefillBudget(prefill_chunk=512, target_s=None)
    budget.record_prefill(3, 1.0)
    budget.record_decode(1, 0.1)
    assert budget.for_step(rows(decoding=True)).tokens == 512  # type: ignore[arg-type]


def test_the_even_parts_of_a_block_count_as_measurements() -> None:
    budget = PrefillBudget(prefill_chunk=512, target_s=0.1)
    budget.record_prefill(100, 10.0)  # a slow moment: only the smallest budget is left
    smallest = budget.for_step(rows(decoding=True)).tokens  # type: ignore[arg-type]
    for _ in range(20):
        budget.record_decode(1, 0.01)
        budget.record_mixed(1, -(-32 // -(-32 // smallest)), 0.012)
    assert budget.for_step(rows(decoding=True)).tokens > smallest  # type: ignore[arg-type]


def test_a_crowd_of_prompts_may_slow_decoding_down() -> None:
    """Else few rows decode at a time, each beside a trickle of prefill, and the queue grows for ever."""
    budget = PrefillBudget(prefill_chunk=512, target_s=None)
    budget.record_prefill(1000, 1.0)
    budget.record_decode(1, 0.1)
    few = [
        budget.for_step(rows(decoding=True) * 4, waiting).tokens
        for waiting in (0, 1, 2, 3, 4, 50)
    ]  # type: ignore[arg-type]
    assert few == [80, 80, 160, 320, 480, 512]
    crowd = [
        budget.for_step(rows(decoding=True) * 12, waiting).tokens
        for waiting in (1, 2, 50)
    ]  # type: ignore[arg-type]
    assert crowd == [320, 480, 512]


def test_decode_steps_are_known_by_their_rows() -> None:
    budget = PrefillBudget(prefill_chunk=512, target_s=None)
    budget.record_prefill(1000, 1.0)
    budget.record_decode(1, 0.05)
    budget.record_decode(16, 0.2)
    crowd = rows(decoding=True) * 14
    assert budget.for_step(rows(decoding=True)).tokens == 40  # type: ignore[arg-type]
    assert budget.for_step(crowd).tokens == 480  # type: ignore[arg-type]
    for _ in range(20):
        budget.record_mixed(
            16, 60, 0.26
        )  # 60 ms more than without, not the 190 that one row's step would leave
    assert 470 <= budget.for_step(crowd).tokens <= 480  # type: ignore[arg-type]
