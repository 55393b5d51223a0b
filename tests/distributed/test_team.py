"""Rank 0 names the rank that was lost, and not whom its loss has hurt."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator

import pytest

from rvllm_local.distributed import frames
from rvllm_local.distributed.joining import LeaderLink
from rvllm_local.distributed.link import Link
from rvllm_local.distributed.team import Team

CALL = frames.CopyBlocks(0, ())


class SlowToEnd(subprocess.Popen[bytes]):
    """A killed process that the system collects when `collect` says so."""

    def __init__(self) -> None:
        self.collect = threading.Event()
        self.pid = -1
        self.returncode = None

    def wait(self, timeout: float | None = None) -> int:
        self.collect.wait(60)
        return -9

    def kill(self) -> None: ...


class Job:
    """Rank 0's team, and the other ranks' ends of the links."""

    def __init__(self, count: int) -> None:
        self.others: list[LeaderLink] = []
        self.exits: list[int] = []
        self.process = SlowToEnd()
        links = []
        with socket.create_server(("127.0.0.1", 0)) as listener:
            for rank in range(1, count):
                ours = socket.create_connection(listener.getsockname())
                theirs, _ = listener.accept()
                links.append(Link(ours, frames.FROM_RANK, f"host {rank}"))
                self.others.append(Link(theirs, frames.FROM_LEADER, "rank 0"))
        self.team = Team(links, {1: self.process})
        self.team.start({})

    def when_asked(self, rank: int, then: Callable[[LeaderLink, int], None]) -> None:
        """Have a rank do something once it is asked whether it is there."""
        link = self.others[rank - 1]

        def wait_for_the_call() -> None:
            while (frame := link.receive()) is not None:
                if isinstance(frame, frames.RollCall):
                    then(link, frame.number)
                    return

        threading.Thread(target=wait_for_the_call, daemon=True).start()

    def close(self) -> None:
        self.process.collect.set()
        for link in self.others:
            link.close()
        self.team.close()


@pytest.fixture
def make_job(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Job]]:
    jobs: list[Job] = []

    def make(count: int) -> Job:
        jobs.append(Job(count))
        monkeypatch.setattr(os, "_exit", jobs[0].exits.append)
        return jobs[0]

    yield make
    for job in jobs:
        job.close()


def answer(link: LeaderLink, number: int) -> None:
    link.send(frames.Present(number))


def fail_a_step(job: Job) -> None:
    with pytest.raises(RuntimeError), job.team.together(CALL):
        raise RuntimeError("a peer was lost")


def test_a_lost_rank_is_named_however_late_its_end_is_heard(
    make_job: Callable[[int], Job], capfd: pytest.CaptureFixture[str]
) -> None:
    """Its sums fail at once; the system collects it when there is time for it."""
    job = make_job(2)
    os.write(2, b"[ring] Socket with")  # MLX's: the rest comes later
    step = threading.Thread(target=fail_a_step, args=(job,))
    step.start()
    job.others[0].close()
    step.join(0.2)
    job.process.collect.set()
    step.join(60)
    assert not step.is_alive()
    assert job.exits == [frames.RANK_LOST]
    lines = capfd.readouterr().err.splitlines()
    assert lines == ["[ring] Socket with", "rank 1 of 2 at host 1 ended (signal 9)"]


def test_a_step_that_fails_while_all_are_there_is_rank_0_s(
    make_job: Callable[[int], Job], capfd: pytest.CaptureFixture[str]
) -> None:
    job = make_job(3)
    job.when_asked(1, answer)
    job.when_asked(2, answer)
    fail_a_step(job)
    assert "failed on rank 0 with RuntimeError" in capfd.readouterr().err


def test_a_rank_whose_sum_failed_is_not_named_for_another_s_end(
    make_job: Callable[[int], Job], capfd: pytest.CaptureFixture[str]
) -> None:
    """Rank 2 is killed, and rank 1 hears of it before rank 0 does."""
    job = make_job(3)
    job.when_asked(2, lambda link, _: link.close())
    job.others[0].send(frames.Failed("RuntimeError", "RuntimeError"))
    fail_a_step(job)
    assert capfd.readouterr().err == "\nrank 2 of 3 at host 2 ended\n"


def test_a_rank_that_knows_why_it_failed_says_so(
    make_job: Callable[[int], Job], capfd: pytest.CaptureFixture[str]
) -> None:
    job = make_job(3)
    job.others[0].send(frames.Failed("MemoryBudgetError", "too little memory"))
    fail_a_step(job)
    words = "\nrank 1 of 3 at host 1 failed: too little memory\n"
    assert capfd.readouterr().err == words
