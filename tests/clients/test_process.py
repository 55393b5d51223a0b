"""The engine's process: what a crash, a stall and a lie on the wire cost, and that nothing is left behind."""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rvllm_local.clients.contract import make_requests, open_stream
from rvllm_local.clients.process import frames
from rvllm_local.clients.process.client import (
    ProcessClient,
    Supervision,
)
from rvllm_local.errors import (
    EngineClosedError,
    EngineCrashedError,
    EngineError,
    MemoryBudgetError,
    ModelNotFoundError,
    ParameterError,
    QueueFullError,
)
from rvllm_local.framing import MAX_FRAME, FrameError
from rvllm_local.options import EngineOptions
from rvllm_local.types import FinishReason, SamplingParams, StreamEvent
from tests.support import processes
from tests.support.tiny import save_tiny

LONG = SamplingParams(max_tokens=1500, temperature=0, ignore_eos=True)
SHORT = SamplingParams(max_tokens=3, temperature=0, ignore_eos=True)
OPTIONS = EngineOptions(
    kv_memory=4_000_000, max_rows=4, prefill_chunk=32, max_waiting=4
)
PATIENT = Supervision(wait_s=120.0, stall_s=60.0, backoff_s=0.01, most_restarts=50)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    save_tiny("llama", path, seed=2)
    return path


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[ProcessClient]:
    client = ProcessClient(str(folder), OPTIONS, supervision=PATIENT)
    yield client
    client.close()


def pid_of(client: ProcessClient) -> int:
    pid = client.health().pid
    assert pid is not None
    return pid


def tokens(client: ProcessClient, params: SamplingParams = SHORT) -> list[int]:
    return [
        token for event in client.submit([5, 6, 7], params) for token in event.token_ids
    ]


def crash(client: ProcessClient) -> None:
    """Kill the child and wait until that was noticed."""
    pid = pid_of(client)
    os.kill(pid, signal.SIGKILL)
    while client.health().state == "ready" and client.health().pid == pid:
        time.sleep(0.001)


class Collector:
    """A sink that remembers when its request ended."""

    def __init__(self) -> None:
        self.events: list[StreamEvent] = []
        self.first, self.ended = threading.Event(), threading.Event()

    def __call__(self, event: StreamEvent) -> None:
        self.events.append(event)
        self.first.set()
        if event.finish_reason is not None:
            self.ended.set()


def test_killed_at_any_moment_every_request_ends_and_the_next_works(
    client: ProcessClient,
) -> None:
    chance = random.Random(3)
    expected = tokens(client)
    for _ in range(6):
        collectors = [Collector() for _ in range(chance.randint(1, 6))]
        for collector in collectors:
            client.start(make_requests([5] * chance.randint(1, 200), LONG), collector)
        time.sleep(chance.uniform(0, 0.1))
        os.kill(pid_of(client), signal.SIGKILL)
        for collector in collectors:
            assert collector.ended.wait(60)
            assert collector.events[-1].finish_reason is FinishReason.ERROR
            assert "ended while the request was open" in (
                collector.events[-1].error or ""
            )
            assert (
                sum(event.finish_reason is not None for event in collector.events) == 1
            )
        assert tokens(client) == expected
    assert client.health().restarts >= 6


@pytest.fixture
def watched(folder: Path) -> Iterator[ProcessClient]:
    """A client that takes an engine for stalled soon."""
    rules = replace(PATIENT, stall_s=5.0)
    client = ProcessClient(str(folder), OPTIONS, supervision=rules)
    yield client
    client.close()


def test_a_child_that_hangs_is_found_and_replaced(watched: ProcessClient) -> None:
    client = watched
    expected, pid = tokens(client), pid_of(client)
    collector = Collector()
    client.start(make_requests([5] * 20, LONG), collector)
    assert collector.first.wait(60)
    os.kill(pid, signal.SIGSTOP)
    assert collector.ended.wait(60)
    assert tokens(client) == expected
    assert pid_of(client) != pid


def test_questions_are_answered_and_health_comes_from_real_steps(
    client: ProcessClient,
) -> None:
    before = client.health().steps
    requests = make_requests([5, 6, 7], SHORT)
    list(open_stream(client, requests))
    (report,) = client.explain(requests[0].request_id)
    assert report.output_tokens == 3 and report.finish_reason is FinishReason.LENGTH
    assert client.stats()["requests_running"] == 0
    assert client.snapshot().blocks.total == len(client.snapshot().block_map)
    processes.eventually(lambda: client.health().steps > before, 60)
    assert client.health().state == "ready"


def test_too_many_requests_are_refused_at_once_and_room_comes_back(
    client: ProcessClient,
) -> None:
    collectors = [Collector() for _ in range(8)]
    requests = [make_requests([5], LONG) for _ in collectors]
    for request, collector in zip(requests, collectors):
        client.start(request, collector)
    with pytest.raises(QueueFullError, match="at most 8"):
        client.submit([5], SHORT)
    for request in requests:
        client.cancel(request[0].request_id)
    for collector in collectors:
        assert collector.ended.wait(60)
    assert len(tokens(client)) == 3
    assert client.stats()["blocks_free"] == client.stats()["blocks_total"]


def test_a_bad_request_is_refused_by_name(client: ProcessClient) -> None:
    with pytest.raises(ParameterError, match="token id 999999"):
        client.submit([999999], SHORT)


def test_a_sink_that_fails_harms_only_its_request(client: ProcessClient) -> None:
    def broken(event: StreamEvent) -> None:
        raise RuntimeError("broken")

    client.start(make_requests([5], LONG), broken)
    assert len(tokens(client)) == 3


def test_what_loading_raised_is_raised_here(folder: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no-such-model"):
        ProcessClient("no-such-model")
    with pytest.raises(MemoryBudgetError, match="too small"):
        ProcessClient(str(folder), EngineOptions(kv_memory=100))


def test_more_crashes_than_allowed_are_given_up_with_advice(folder: Path) -> None:
    rules = Supervision(wait_s=120.0, backoff_s=0.01, most_restarts=1)
    client = ProcessClient(str(folder), OPTIONS, supervision=rules)
    try:
        crash(client)
        assert len(tokens(client)) == 3
        crash(client)
        with pytest.raises(EngineCrashedError, match="not started again"):
            tokens(client)
        assert client.health().state == "failed"
    finally:
        client.close()


def test_closing_leaves_nothing_behind(folder: Path) -> None:
    files, threads = processes.open_descriptors(), threading.active_count()
    for _ in range(3):
        client = ProcessClient(str(folder), OPTIONS)
        collector = Collector()
        client.start(make_requests([5], LONG), collector)
        pid = pid_of(client)
        client.close()
        client.close()
        assert (
            collector.ended.wait(60)
            and collector.events[-1].finish_reason is FinishReason.ERROR
        )
        assert not processes.exists(pid)
        with pytest.raises(EngineClosedError):
            client.submit([5], SHORT)
    processes.eventually(lambda: threading.active_count() <= threads, 60)
    processes.eventually(lambda: processes.open_descriptors() <= files, 60)


def test_the_child_ends_with_its_parent(folder: Path) -> None:
    code = (
        "import sys, time; from rvllm_local.clients.process.client import ProcessClient\n"
        "client = ProcessClient(sys.argv[1]); print(client.health().pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    processes.eventually(lambda: not _runs(child), 60)


def _runs(pid: int) -> bool:
    """Alive, and not a zombie that its new parent has yet to collect."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return processes.exists(pid) if not Path("/proc/self").exists() else False


def test_the_parent_loads_no_mlx() -> None:
    code = "import sys, rvllm_local.clients.process.client; print([n for n in ('mlx', 'mlx.core', 'numpy') if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "bytes_sent",
    [
        struct.pack(">I", MAX_FRAME + 1),
        struct.pack(">I", 3) + b"abc",
        struct.pack(">I", 100) + b"short",
        struct.pack(">I", 1) + b"\xc1",
        struct.pack(">I", 0),
    ],
)
def test_what_is_no_frame_is_refused(bytes_sent: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(bytes_sent)
        ours.shutdown(socket.SHUT_WR)
        with pytest.raises(FrameError):
            frames.receive_command(theirs)


def test_requests_cross_unchanged() -> None:
    params = SamplingParams(
        max_tokens=9,
        temperature=0.3,
        seed=2**64 - 1,
        stop=("a", "b"),
        logit_bias={5: -1.5},
        logprobs=3,
        min_p=0.1,
    )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        requests = tuple(
            make_requests([1, 2, 3], params, priority=-2, grammar="start: /x/")
        )
        frames.send(ours, frames.Start(requests))
        command = frames.receive_command(theirs)
    assert isinstance(command, frames.Start)
    assert command.requests == requests
    with pytest.raises(EngineError):
        raise EngineCrashedError("an engine error like the others")
