"""Code that is ended from outside: once, at its time, and with nothing left for the code that comes after."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from rvllm_local.interrupts import Interrupt, deadline


class LateError(Exception):
    pass


def test_a_loop_without_end_is_ended() -> None:
    with pytest.raises(LateError), deadline(0.05, LateError):
        while True:
            pass


def test_work_in_time_is_left_alone() -> None:
    before = threading.active_count()
    with deadline(60, LateError):
        pass
    while threading.active_count() > before:  # the one that watches is still there
        time.sleep(0.01)


def test_what_is_still_on_its_way_arrives_within() -> None:
    for _ in range(200):
        interrupt = Interrupt(LateError)
        has_begun = threading.Lock()
        has_begun.acquire()
        thread = threading.Thread(target=_fire_after, args=(has_begun, interrupt))
        # Started before: an error within `start` breaks the threads' own books.
        thread.start()
        try:
            has_begun.release()
            thread.join()
        except LateError:
            thread.join()
        interrupt.close()
        interrupt.fire()
    assert sum(range(1000)) == 499_500


def _fire_after(has_begun: threading.Lock, interrupt: Interrupt) -> None:
    with has_begun:
        interrupt.fire()


LEAVES_NOTHING = """
import sys
from rvllm_local.interrupts import deadline
class Late(Exception): pass
for _ in range(3):
    with deadline(60, Late):
        pass
    try:
        with deadline(0.02, Late):
            while True: pass
    except Late:
        pass
calls = []
def work():
    return sum(map(int, "123"))
sys.setprofile(lambda frame, event, argument: calls.append(event))
work()
sys.setprofile(None)
print(len(calls))
"""


def test_no_flag_is_left_standing() -> None:
    """Under a profiler, CPython 3.11 would never return from `work` while one stands."""
    done = subprocess.run(
        [sys.executable, "-c", LEAVES_NOTHING],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert int(done.stdout) > 3, done.stderr
