"""An engine's process that is killed, stopped, lies, says nothing or is left alone: every request ends, nothing stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from rvllm_local.child_start import child_environment
from rvllm_local.clients.contract import make_requests
from rvllm_local.clients.process.client import ProcessClient, Supervision
from rvllm_local.errors import (
    ConfigError,
    ContextOverflowError,
    EngineCrashedError,
    EngineError,
    MemoryBudgetError,
    ParameterError,
)
from rvllm_local.options import EngineOptions
from rvllm_local.types import SamplingParams, StreamEvent
from tests.support.fake_engine import command
from tests.support.processes import eventually, exists, is_running, open_descriptors
from tests.support.tiny import save_tiny

ENDLESS = SamplingParams(max_tokens=1900, temperature=0, ignore_eos=True)
SHORT = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
OPTIONS = EngineOptions(kv_memory=4_000_000, max_rows=4, prefill_chunk=32)
LENIENT = Supervision(
    stall_s=60.0, backoff_s=0.02, most_restarts=100, close_s=1.0, wait_s=120.0
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny("llama", tmp_path_factory.mktemp("llama"), seed=2))


@pytest.fixture(scope="module")
def real(folder: str) -> Iterator[ProcessClient]:
    client = ProcessClient(folder, OPTIONS, supervision=LENIENT)
    yield client
    client.close()


@pytest.fixture
def fake() -> Iterator[Callable[..., ProcessClient]]:
    """Opens clients of an engine that misbehaves, and closes them."""
    opened: list[ProcessClient] = []

    def open_client(
        mode: str, supervision: Supervision = LENIENT, wait: bool = True
    ) -> ProcessClient:
        opened.append(
            ProcessClient(
                "fake", supervision=supervision, command=command(mode), wait=wait
            )
        )
        return opened[-1]

    yield open_client
    for client in opened:
        client.close()


def pid_of(client: ProcessClient) -> int:
    eventually(lambda: client.health().pid is not None, 60)
    pid = client.health().pid
    assert pid is not None
    return pid


def answer(client: ProcessClient, params: SamplingParams = SHORT) -> list[int]:
    return [
        token for event in client.submit([1, 2, 3], params) for token in event.token_ids
    ]


def test_kill_9_while_idle_and_again_while_loading(real: ProcessClient) -> None:
    expected, restarts = answer(real), real.health().restarts
    first = pid_of(real)
    os.kill(first, signal.SIGKILL)
    eventually(lambda: real.health().pid not in (None, first), 60)
    os.kill(pid_of(real), signal.SIGKILL)
    assert answer(real) == expected
    assert real.health().restarts >= restarts + 2


def test_kill_9_in_the_first_loading_is_survived(folder: str) -> None:
    client = ProcessClient(
        folder, OPTIONS, supervision=replace(LENIENT, wait_s=0.0), wait=False
    )
    first = pid_of(client)
    os.kill(first, signal.SIGSTOP)  # it shall not be ready before it was looked at
    assert client.health().state == "loading" and client.health().model == folder
    with pytest.raises(EngineCrashedError, match="still being loaded"):
        client.submit([1], SHORT)
    os.kill(first, signal.SIGKILL)
    eventually(lambda: client.health().restarts == 1, 60)
    with pytest.raises(EngineCrashedError, match=r"SIGKILL.*try again"):
        client.submit([1], SHORT)
    client.wait_ready(60)
    assert len(answer(client)) == 4
    client.close()


def test_a_stopped_process_is_killed_and_replaced(folder: str) -> None:
    client = ProcessClient(folder, OPTIONS, supervision=replace(LENIENT, stall_s=3.0))
    first = pid_of(client)
    stream = client.submit([1, 2], ENDLESS)
    next(stream)
    os.kill(first, signal.SIGSTOP)
    with pytest.raises(EngineError, match="for 3 s while the request was open"):
        list(stream)
    assert not exists(first)
    assert len(answer(client)) == 4
    client.close()


def test_an_engine_that_beats_but_makes_no_step_is_stalled(
    fake: Callable[..., ProcessClient],
) -> None:
    client = fake("stuck", replace(LENIENT, stall_s=1.0))
    first = pid_of(client)
    with pytest.raises(EngineError, match="had work and made no step for 1 s"):
        list(client.submit([1], SHORT))
    assert not exists(first)


def test_a_process_that_says_nothing_while_it_loads_is_replaced(
    fake: Callable[..., ProcessClient],
) -> None:
    client = fake("mute", replace(LENIENT, stall_s=0.5, most_restarts=1), wait=False)
    with pytest.raises(EngineCrashedError, match=r"no sign of life for 0\.5 s"):
        client.wait_ready(60)


@pytest.mark.parametrize(
    ("mode", "told"),
    [
        ("unknown", "broke the protocol"),
        ("oversized", "broke the protocol"),
        ("aborts", "ended while the request was open"),
        ("hangs-up", "ended while the request was open"),
    ],
)
def test_a_process_that_lies_or_leaves_ends_its_requests_and_is_gone(
    fake: Callable[..., ProcessClient], mode: str, told: str
) -> None:
    client = fake(mode)
    first = pid_of(client)
    with pytest.raises(EngineError, match=told):
        list(client.submit([1], SHORT))
    assert not exists(first)
    client.wait_ready(60)


def test_events_in_pieces_twice_or_for_nobody_do_no_harm(
    fake: Callable[..., ProcessClient],
) -> None:
    events = list(fake("pieces").submit([1], SamplingParams(n=2)))
    assert [(event.text, event.index) for event in events] == [
        ("a", 0),
        ("b", 0),
        ("b", 1),
    ]


def test_an_engine_that_says_why_it_ends_is_quoted(
    fake: Callable[..., ProcessClient], caplog: pytest.LogCaptureFixture
) -> None:
    client = fake("gives-up")
    with pytest.raises(EngineCrashedError):
        list(client.submit([1], SHORT))
    eventually(lambda: "ended (too little memory; close" in caplog.text, 60)


def test_a_refusal_in_the_child_arrives_with_its_text_and_class(
    fake: Callable[..., ProcessClient],
) -> None:
    client = fake("declines")
    with pytest.raises(EngineError, match="no such grammar"):
        list(client.submit([1], SHORT))
    with pytest.raises(ContextOverflowError, match="too long by far") as caught:
        client.stats()
    assert caught.value.parameter == "prompt"


def test_loading_that_fails_raises_what_it_raised_and_is_not_repeated(
    fake: Callable[..., ProcessClient],
) -> None:
    with pytest.raises(MemoryBudgetError, match="close something"):
        fake("refuses")
    client = fake("refuses", wait=False)
    eventually(lambda: client.health().state == "failed", 60)
    assert (
        client.health().restarts == 0 and "close something" in client.health().message
    )
    with pytest.raises(EngineCrashedError, match="close something"):
        client.submit([1], SHORT)
    with pytest.raises(ConfigError, match="Unicode"):
        ProcessClient("\ud800")


def test_restarts_are_capped_and_the_message_says_what_to_do(
    fake: Callable[..., ProcessClient],
) -> None:
    client = fake("dies", replace(LENIENT, most_restarts=2), wait=False)
    with pytest.raises(
        EngineCrashedError,
        match=r"crashed 3 times.*exit status 3.*the reason; see the log",
    ):
        client.wait_ready(60)
    health = client.health()
    assert (health.state, health.restarts, health.pid) == ("failed", 2, None)
    assert len(health.message) < 3000
    with pytest.raises(EngineCrashedError):
        client.submit([1], SHORT)


def test_a_process_that_does_not_close_is_killed_at_the_deadline(
    fake: Callable[..., ProcessClient],
) -> None:
    client = fake("stubborn")
    pid, began = pid_of(client), time.monotonic()
    client.close()
    assert time.monotonic() - began > 0.9 and not exists(pid)
    assert client.health().state == "closed"


def test_closing_waits_for_no_loading(fake: Callable[..., ProcessClient]) -> None:
    client = fake("mute", wait=False)  # it would load for a minute
    pid = pid_of(client)
    client.close()
    assert not exists(pid) and client.health().state == "closed"


def test_twenty_clients_leave_nothing_behind(
    fake: Callable[..., ProcessClient],
) -> None:
    fake("plain").close()
    before = open_descriptors(), threading.active_count()
    pids = []
    for _ in range(20):
        client = fake("plain")
        pids.append(pid_of(client))
        list(client.submit([1], SHORT))
        client.close()
    assert not any(exists(pid) for pid in pids)
    eventually(lambda: open_descriptors() <= before[0], 60)
    eventually(lambda: threading.active_count() <= before[1], 60)


def test_requests_that_cannot_be_sent_are_refused_alone(real: ProcessClient) -> None:
    with pytest.raises(EngineError, match="cannot be sent"):
        list(real.submit([1], SamplingParams(stop="\ud800")))
    events: list[StreamEvent] = []
    ended = threading.Event()
    requests = make_requests([1], ENDLESS, request_id="one")

    def sink(event: StreamEvent) -> None:
        events.append(event)
        if event.finish_reason is not None:
            ended.set()

    real.start(requests, sink)
    with pytest.raises(ParameterError, match="already open"):
        real.start(requests, events.append)
    real.cancel("one")
    assert ended.wait(60)
    assert sum(event.finish_reason is not None for event in events) == 1
    assert len(answer(real)) == 4


def test_a_consumer_that_fails_is_cancelled_and_gives_its_place_back(
    folder: str,
) -> None:
    client = ProcessClient(
        folder, structs.replace(OPTIONS, max_rows=1, max_waiting=0), supervision=LENIENT
    )
    calls: list[StreamEvent] = []

    def broken(event: StreamEvent) -> None:
        calls.append(event)
        raise RuntimeError("no")

    for _ in range(3):
        client.start(make_requests([3], ENDLESS), broken)
        eventually(
            lambda: (
                client.stats()["requests_running"] == 0 and client._gate.num_open == 0
            ),
            60,
        )  # type: ignore[union-attr]
    assert len(calls) == 3
    assert len(answer(client)) == 4
    client.close()


PARENT = """
import json, sys, time
from rvllm_local.options import EngineOptions
from rvllm_local.clients.process.client import ProcessClient
from rvllm_local.types import SamplingParams
client = ProcessClient(sys.argv[1], EngineOptions(kv_memory=4_000_000), wait=sys.argv[2] == "ready")
if sys.argv[2] == "ready":
    next(client.submit([1, 2], SamplingParams(max_tokens=1900, ignore_eos=True)))
while client.health().pid is None: time.sleep(0.01)
heavy = [name for name in ("mlx", "mlx.core", "numpy", "tokenizers") if name in sys.modules]
print(json.dumps([client.health().pid, heavy]), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("moment", ["ready", "loading", "stopped"])
def test_a_parent_that_is_killed_takes_its_engine_along_and_never_loaded_mlx(
    folder: str, moment: str
) -> None:
    if moment == "stopped" and sys.platform != "linux":
        pytest.skip("only Linux can end a stopped process with its parent")
    arguments = [
        sys.executable,
        "-c",
        PARENT,
        folder,
        "ready" if moment == "stopped" else moment,
    ]
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid, heavy = json.loads(parent.stdout.readline())
        assert is_running(pid) and heavy == []
        if moment == "stopped":
            os.kill(pid, signal.SIGSTOP)
        parent.kill()
        eventually(lambda: not is_running(pid), 60)


def test_an_interrupt_in_the_terminal_does_not_reach_the_engine(
    real: ProcessClient,
) -> None:
    answer(real)
    pid = pid_of(real)
    assert os.getpgid(pid) == pid
    os.kill(pid, signal.SIGINT)
    assert len(answer(real)) == 4 and pid_of(real) == pid


def test_the_child_sees_settings_and_no_keys(real: ProcessClient) -> None:
    kept = {"PATH": "/bin", "RVLLM_BLAS": "x", "LC_ALL": "C"}
    dropped = {
        "RVLLM_API_KEY": "k",
        "OPENAI_API_KEY": "k",
        "AWS_SECRET": "s",
        "EDITOR": "vi",
    }
    assert child_environment(kept | dropped) == kept
    environ = Path(f"/proc/{pid_of(real)}/environ")
    if environ.exists():
        assert b"PYTEST_CURRENT_TEST" not in environ.read_bytes()


IMPORTS_LATER = """
import sys
from pathlib import Path
from rvllm_local import host
host.prepare()
from rvllm_local.clients.process import child
child._import_ahead()
from rvllm_local.engine.loop import EngineLoop
from rvllm_local.engine.startup.open import open_any_core
from rvllm_local.models.locate import locate
from rvllm_local.options import EngineOptions
from rvllm_local.text.tokenizer_files import read_tokenizer
before = set(sys.modules)
files = locate(sys.argv[1], print)
text = read_tokenizer(files)
loop = EngineLoop(lambda: open_any_core(files, text, EngineOptions(kv_memory=4_000_000)))
loop.call(lambda core: core.limits)
loop.close()
late = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(late & {"jinja2", "onnxruntime", "platformdirs", "llguidance", "tokenizers"}))
"""


def test_an_engine_imports_no_library_once_it_is_told_its_model(folder: str) -> None:
    """What it imports before that costs no time: the server is imported beside it."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS_LATER, folder],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"
