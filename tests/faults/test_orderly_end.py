"""A server ends in its time, whatever its templates, its clients and its engines do."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

import httpx

from rvllm_local.server.http.settings import ServerSettings
from rvllm_local.server.prompts.process import PromptProcess
from tests.support.api import CHAT, PacedClient, served
from tests.support.processes import eventually, is_running
from tests.support.served import save_thinking

SETTINGS = ServerSettings(port=0, drain_s=2.0)
LOOP = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
HEAD = (
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
)


def test_a_template_that_loops_ends_with_the_drain(tmp_path: Path) -> None:
    folder = save_thinking(tmp_path / "looping")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    bomb = "{% if messages[0].content == 'loop' %}" + LOOP + "{% endif %}."
    path.write_text(json.dumps({**settings, "chat_template": bomb}), encoding="utf-8")
    answers: list[httpx.Response] = []
    with served(
        {"looping": folder},
        SETTINGS,
        opener=lambda files, options: PacedClient(),
        prompts=PromptProcess,
    ) as running:
        running.post(CHAT)
        prompts = running.server.registry.loaded()[0].prompts
        assert isinstance(prompts, PromptProcess)
        message = {"role": "user", "content": "loop"}

        def ask() -> None:
            answers.append(running.post({**CHAT, "messages": [message]}))

        client = threading.Thread(target=ask)
        client.start()
        eventually(lambda: prompts._slots._value == 3, 60)
        running.loop.call_soon_threadsafe(running.listener.stop)
        eventually(running.loop.is_closed, 60)
        client.join(60)
    error = answers[0].json()["error"]
    assert (answers[0].status_code, error["code"]) == (503, "shutting_down")
    eventually(lambda: not is_running(prompts._process.pid), 60)


def test_a_client_that_does_not_read_and_an_engine_that_does_not_end(
    tiny: Path,
) -> None:
    engine = PacedClient(word="x" * 20_000)
    ended = threading.Event()
    engine.close = ended.wait  # type: ignore[method-assign,assignment]
    with (
        served(
            {"tiny": tiny}, SETTINGS, opener=lambda files, options: engine
        ) as running,
        socket.socket() as connection,
    ):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", running.port))
        body = {"model": "tiny", "prompt": "x", "max_tokens": 5000, "stream": True}
        data = json.dumps(body).encode()
        connection.sendall(HEAD % (len(data), data))
        eventually(lambda: engine.open, 60)
        running.loop.call_soon_threadsafe(running.listener.stop)
        eventually(lambda: running.server.registry._is_closed, 60)
        ended.set()  # this process does not end: its threads are waited for
        eventually(running.loop.is_closed, 60)
