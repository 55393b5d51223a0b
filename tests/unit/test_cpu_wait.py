"""Waiting for a processor, as the watchdog sees it."""

from __future__ import annotations

import os
from pathlib import Path

from rvllm_local.cpu_wait import CpuWait


def tell(proc: Path, **waits: int) -> None:
    for task, seconds in waits.items():
        folder = proc / "7" / "task" / task
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "schedstat").write_text(
            f"123 {seconds * 10**9} 5\n", encoding="ascii"
        )


def test_the_longest_wait_of_any_thread_since_the_last_look(tmp_path: Path) -> None:
    wait = CpuWait(7, tmp_path)
    tell(tmp_path, a=10, b=90)
    assert wait.since_last() == 0  # nothing to compare with
    tell(tmp_path, a=14, b=91, new=50)
    assert wait.since_last() == 4  # a new thread's past is not part of it
    wait.forget()
    tell(tmp_path, a=40, b=91)
    assert wait.since_last() == 0


def test_nothing_is_known_of_a_process_that_has_gone_or_a_system_that_does_not_say(
    tmp_path: Path,
) -> None:
    wait = CpuWait(7, tmp_path)
    assert wait.since_last() == wait.since_last() == 0
    tell(tmp_path, a=1)
    (tmp_path / "7" / "task" / "a" / "schedstat").write_text("what?", encoding="ascii")
    assert wait.since_last() == wait.since_last() == 0


def test_this_process_can_be_read() -> None:
    wait = CpuWait(os.getpid())
    wait.since_last()
    assert 0 <= wait.since_last() < 60
