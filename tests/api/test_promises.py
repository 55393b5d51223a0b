"""The promises that the README prints, each through HTTP, under its own name.

Promise 10, that what is shown as saved survives kill -9, is kept by other rooms: tests/tui/test_history.py for chats,
tests/memory/test_disk_cache.py for cached blocks, tests/models/test_hub.py for downloads. The server shows nothing as saved.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from rvllm_local.engine.core import EngineCore
from rvllm_local.options import EngineOptions
from rvllm_local.server.http.settings import ServerSettings
from rvllm_local.server.prompts.process import PromptProcess
from tests.support.api import CHAT, Running, served
from tests.support.processes import eventually, is_running
from tests.support.served import rvllm_serve, save_thinking

SECRET = "zebra crossing at midnight"
LONG = {**CHAT, "max_tokens": 1500, "ignore_eos": True}
FLAGS = ("--kv-memory", "6MB", "--drain", "60s")


def test_1_nothing_off_the_machine_reaches_it(api: Running) -> None:
    assert (
        api.client.get("/health", headers={"host": "rebound.example"}).status_code
        == 403
    )
    assert (
        api.client.get(
            "/health", headers={"origin": "https://page.example"}
        ).status_code
        == 403
    )
    command = [
        sys.executable,
        "-m",
        "rvllm_local.cli",
        "serve",
        "--host",
        "0.0.0.0",
        "--port",
        "0",
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "RVLLM_API_KEY": ""},
        timeout=120,
    )
    assert done.returncode == 2 and "needs a key" in done.stderr


def test_2_a_models_repository_never_runs_code(tmp_path: Path) -> None:
    folder = save_thinking(tmp_path / "canary")
    canary = tmp_path / "sang"
    (folder / "modeling_x.py").write_text(f"open({str(canary)!r}, 'w')")
    config = json.loads((folder / "config.json").read_text())
    auto = {
        "auto_map": {
            "AutoModelForCausalLM": "modeling_x.X",
            "AutoTokenizer": ["modeling_x.X", None],
        }
    }
    (folder / "config.json").write_text(json.dumps({**config, **auto}))
    with served({"canary": folder}) as running:
        answer = running.post(CHAT)
        assert answer.status_code in (200, 400)
    assert not canary.exists()


def test_2_a_template_that_never_ends_is_ended(tmp_path: Path) -> None:
    folder = save_thinking(tmp_path / "looping")
    path = folder / "tokenizer_config.json"
    loop = (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    )
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": loop}))
    with served(
        {"looping": folder},
        ServerSettings(port=0, prepare_timeout_s=0.3),
        prompts=PromptProcess,
    ) as running:
        while running.post({"prompt": "x"}, "/tokenize").status_code != 200:
            pass  # the first one may wait for its process longer than 0.3 s
        for _ in range(5):  # more than there are workers
            answer = running.post(CHAT)
            assert (answer.status_code, answer.json()["error"]["code"]) == (
                400,
                "deadline",
            )
        tokens = {"prompt": [5], "max_tokens": 1, "model": "default"}
        assert running.post(tokens, "/v1/completions").status_code in (200, 400)
        assert running.client.get("/health").status_code == 200


def test_3_a_prompt_is_in_no_log_metric_or_error(tiny: Path) -> None:
    with rvllm_serve([tiny], *FLAGS) as (base, process):
        with httpx.Client(base_url=base, timeout=240) as client:
            said = [{"role": "user", "content": SECRET}]
            found = [client.post("/v1/chat/completions", json={**CHAT, "messages": said, **extra}).text for extra in
                     ({"seed": "x"}, {"response_format": {"type": "regex", "regex": "("}}, {"max_tokens": 10**9}, {})]  # fmt: skip
            assert not any(SECRET in text for text in found[:3])
            with client.stream(
                "POST",
                "/v1/chat/completions",
                json={**LONG, "messages": said, "stream": True},
            ) as answer:
                lines = answer.iter_lines()
                next(lines)
                os.kill(
                    client.get("/health").json()["engines"][0]["pid"], signal.SIGABRT
                )
                assert SECRET not in "".join(lines)
            assert (
                SECRET
                not in client.get("/metrics").text + client.get("/v1/engine").text
            )
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        assert SECRET not in process.stderr.read()


@pytest.fixture(scope="module")
def crashing(tiny: Path) -> Iterator[str]:
    """Base address of a server whose engine may be killed."""
    with rvllm_serve([tiny], *FLAGS) as (base, _):
        assert (
            httpx.post(
                f"{base}/v1/chat/completions", json=CHAT, timeout=240
            ).status_code
            == 200
        )
        yield base


def engine_pid(base: str) -> int:
    """The engine's process, once it serves."""
    rows: list[dict[str, Any]] = []

    def is_ready() -> bool:
        rows[:] = httpx.get(f"{base}/health", timeout=240).json()["engines"]
        return bool(rows[0]["state"] == "ready" and rows[0]["pid"])

    eventually(is_ready, 60)
    return int(rows[0]["pid"])


def test_4_every_accepted_request_ends(crashing: str) -> None:
    lines: list[list[str]] = []
    accepted: list[int] = []

    def read() -> None:
        with httpx.stream(
            "POST",
            f"{crashing}/v1/chat/completions",
            json={**LONG, "stream": True},
            timeout=240,
        ) as answer:
            accepted.append(answer.status_code)
            lines.append([line for line in answer.iter_lines() if line])

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    whole: list[httpx.Response] = []
    readers.append(
        threading.Thread(
            target=lambda: whole.append(
                httpx.post(f"{crashing}/v1/chat/completions", json=LONG, timeout=240)
            )
        )
    )
    readers[-1].start()
    pid = engine_pid(crashing)
    eventually(lambda: len(accepted) == 3, 60)
    os.kill(pid, signal.SIGKILL)
    for reader in readers:
        reader.join(120)
    assert accepted == [200] * 3 and len(lines) == 3
    assert whole[0].status_code == 200 or (
        whole[0].status_code == 503 and int(whole[0].headers["retry-after"]) >= 1
    )
    for one in lines:
        assert one[-1] == "data: [DONE]" or "error" in json.loads(
            one[-1].removeprefix("data: ")
        )


def test_8_a_crash_is_followed_by_a_restart(crashing: str) -> None:
    os.kill(engine_pid(crashing), signal.SIGKILL)
    statuses = set()

    def serves() -> bool:
        answer = httpx.post(f"{crashing}/v1/chat/completions", json=CHAT, timeout=240)
        statuses.add(answer.status_code)
        if answer.status_code == 503:
            assert (
                answer.headers["retry-after"]
                and answer.json()["error"]["code"] == "engine_restarting"
            )
        return answer.status_code == 200

    eventually(serves, 60)
    assert statuses <= {200, 503}
    assert (
        httpx.get(f"{crashing}/health", timeout=240).json()["engines"][0]["restarts"]
        >= 1
    )


def test_8_one_bad_request_fails_alone(api: Running) -> None:
    good = {**CHAT, "temperature": 0, "max_tokens": 12}
    alone = api.post(good).json()["choices"][0]["message"]["content"]
    bad: list[dict[str, Any]] = [
        {"seed": "x"}, {"response_format": {"type": "regex", "regex": "(a"}}, {"max_tokens": 10**8}, {"model": "none"},
        {"logit_bias": {"5": -100}, "logprobs": True}, {"presence_penalty": 1.0, "top_p": 0.5}, {"stop": ["a"]}, {"n": 3},
        {"response_format": {"type": "json_object"}},
    ]  # fmt: skip
    with ThreadPoolExecutor(8) as threads:
        answers = list(
            threads.map(lambda extra: api.post({**good, **extra}), [{}, *bad] * 3)
        )
    assert all(answer.status_code < 500 for answer in answers)
    for answer in answers[:: len(bad) + 1]:
        assert answer.json()["choices"][0]["message"]["content"] == alone


def test_5_overload_is_refused_at_once_and_hurts_nobody(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_step, step = threading.Event(), EngineCore.step

    def held_step(core: EngineCore) -> None:
        may_step.wait(120)
        step(core)

    options = EngineOptions(
        kv_memory=6_000_000, max_rows=2, prefill_chunk=64, max_waiting=2
    )
    with served({"tiny": tiny}, options=options) as running:
        running.post(CHAT)
        monkeypatch.setattr(EngineCore, "step", held_step)
        with ThreadPoolExecutor(12) as threads:
            body = {**LONG, "max_tokens": 60}
            asked = [threads.submit(running.post, body) for _ in range(12)]
            # Nobody's answer makes room before the others were refused.
            eventually(lambda: sum(one.done() for one in asked) == 8, 60)
            may_step.set()
            answers = [one.result() for one in asked]
        refused = [answer for answer in answers if answer.status_code == 429]
        accepted = [answer for answer in answers if answer.status_code == 200]
        assert (len(accepted), len(refused)) == (4, 8)
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        assert {answer.headers["x-should-retry"] for answer in refused} == {"true"}
        assert {answer.json()["usage"]["completion_tokens"] for answer in accepted} == {
            60
        }


def test_6_what_can_never_fit_is_refused_and_what_can_wait_waits(tiny: Path) -> None:
    options = EngineOptions(
        kv_memory=250_000, max_rows=4, prefill_chunk=64, max_waiting=32
    )
    with served({"tiny": tiny}, options=options) as running:
        room = (
            running.post({"prompt": "x"}, "/tokenize").json()
            and running.engine.limits.arena_tokens
        )
        never = running.post({**LONG, "max_tokens": room})
        assert (never.status_code, never.json()["error"]["code"]) == (
            400,
            "context_length_exceeded",
        )
        with ThreadPoolExecutor(4) as threads:
            most = {**LONG, "max_tokens": room - 60}
            answers = list(threads.map(lambda _: running.post(most), range(4)))
        assert [answer.json()["usage"]["completion_tokens"] for answer in answers] == [
            room - 60
        ] * 4


@pytest.mark.parametrize("stream", [False, True])
def test_7_a_disconnect_frees_its_blocks(api: Running, stream: bool) -> None:
    api.post(CHAT)
    body = json.dumps({**LONG, "stream": stream}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection = api.connect()
    connection.sendall(head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
    api.eventually(lambda: api.engine.snapshot().blocks.used > 0)
    connection.close()
    api.eventually(lambda: api.engine.snapshot().blocks.used == 0, 60)


def refuses(base: str) -> bool:
    """True once new requests are refused."""
    try:
        answer = httpx.post(f"{base}/v1/chat/completions", json=CHAT, timeout=240)
    except httpx.HTTPError:
        return True
    return answer.is_error


def test_9_a_signal_drains_and_leaves_nothing_behind(tiny: Path) -> None:
    with rvllm_serve([tiny], *FLAGS) as (base, process):
        assert (
            httpx.post(
                f"{base}/v1/chat/completions", json=CHAT, timeout=240
            ).status_code
            == 200
        )
        pid = engine_pid(base)
        with httpx.stream(
            "POST",
            f"{base}/v1/chat/completions",
            json={**LONG, "stream": True},
            timeout=240,
        ) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            eventually(lambda: refuses(base), 60)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert process.wait(60) == 0
        eventually(lambda: not is_running(pid), 60)


def test_9_a_second_signal_aborts_with_an_error(tiny: Path) -> None:
    with rvllm_serve([tiny], *FLAGS) as (base, process):
        assert (
            httpx.post(
                f"{base}/v1/chat/completions", json=CHAT, timeout=240
            ).status_code
            == 200
        )
        pid = engine_pid(base)
        endless = {**LONG, "max_tokens": 1900, "n": 4, "stream": True}
        with httpx.stream(
            "POST", f"{base}/v1/chat/completions", json=endless, timeout=240
        ) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            eventually(lambda: refuses(base), 60)
            process.send_signal(signal.SIGTERM)
            last = json.loads(
                [line for line in lines if line][-1].removeprefix("data: ")
            )
        assert last["error"]["code"] == "shutting_down"
        assert process.wait(60) == 0
        eventually(lambda: not is_running(pid), 60)


def test_11_a_seed_gives_the_same_tokens_in_any_company(tiny: Path) -> None:
    options = EngineOptions(
        kv_memory=6_000_000,
        max_rows=4,
        prefill_chunk=64,
        max_waiting=32,
        deterministic=True,
    )
    with served({"tiny": tiny}, options=options) as running:
        ask = {**CHAT, "seed": 7, "temperature": 1.0, "max_tokens": 24}
        alone = running.post(ask).json()["choices"][0]["message"]
        noise = [
            {
                **CHAT,
                "messages": [{"role": "user", "content": "y" * n}],
                "max_tokens": 9 + n,
            }
            for n in range(1, 12)
        ]
        with ThreadPoolExecutor(16) as threads:
            crowd = list(threads.map(running.post, [ask, *noise, ask]))
        assert (
            crowd[0].json()["choices"][0]["message"]
            == crowd[-1].json()["choices"][0]["message"]
            == alone
        )


def test_12_the_plan_is_shown_and_a_crash_loop_is_not_gone_on_with(
    crashing: str,
) -> None:
    engine = httpx.get(f"{crashing}/v1/engine", timeout=240).json()["engines"][0]
    assert 0 < engine["planned_bytes"] <= engine["memory"]["budget"]
    assert engine["memory"]["total"] <= engine["memory"]["budget"]

    def has_failed() -> bool:
        row = httpx.get(f"{crashing}/health", timeout=240).json()["engines"][0]
        if row["state"] == "ready" and row["pid"]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(row["pid"], signal.SIGKILL)
        return bool(row["state"] == "failed")

    eventually(has_failed, 240)
    answer = httpx.post(f"{crashing}/v1/chat/completions", json=CHAT, timeout=240)
    assert (
        answer.status_code == 503
        and "not started again" in answer.json()["error"]["message"]
    )
    assert httpx.get(f"{crashing}/health", timeout=240).status_code == 503
