"""In a crowd that never ends, requests of the lowest priority are served all the same."""

from __future__ import annotations

import pytest

from tests.engine.test_scheduler import finish, sequence, setup


@pytest.mark.parametrize(("crowd", "handicap_s"), [(0, 200), (100, 400)])
def test_waiting_raises_a_rank(crowd: int, handicap_s: int) -> None:
    """It goes before all who come more than its handicap later.

    One request is served a second, and two of the crowd's come meanwhile: those who
    came within the handicap take twice as long.
    """
    kv, scheduler = setup(max_rows=1)
    low = sequence(kv, 5, 3, priority=-100, arrived=0.0)
    scheduler.add(low)
    order, fresh = 0, []
    for second in range(2 * handicap_s + 5):
        for _ in range(2):
            order += 1
            row = sequence(kv, 5, 3, order=order, priority=crowd, arrived=second - 0.5)
            scheduler.add(row)
            fresh.append(row)
        scheduler.schedule(40)
        (running,) = scheduler.running
        if running is low:
            break
        finish(kv, scheduler, running)
    assert low in scheduler.running, "it waits for ever"
    waiting = [row.timings.arrived for row in fresh if row in scheduler.waiting]
    assert min(waiting) >= handicap_s - 1


def test_a_higher_priority_still_goes_first_among_those_who_came_together() -> None:
    kv, scheduler = setup(max_rows=1)
    rows = [
        sequence(kv, 5, 3, order=order, priority=priority, arrived=order / 10)
        for order, priority in enumerate((0, 5, -5, 10))
    ]
    for row in rows:
        scheduler.add(row)
    served = []
    while scheduler.has_work:
        scheduler.schedule(40)
        (running,) = scheduler.running
        served.append(running.request.priority)
        finish(kv, scheduler, running)
    assert served == [10, 5, 0, -5]
