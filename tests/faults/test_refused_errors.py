"""A refused request leaves no error behind: one that leads to itself would keep the body."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rvllm_local.errors import ModelFileError
from rvllm_local.server.api.engine import tokenize_routes
from rvllm_local.server.http.settings import ServerSettings
from tests.support.api import CHAT, PacedClient, Running, served

TEXT = "large " * 2**15
TOO_LONG = [{"role": "user", "content": TEXT}]
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "a field": ("/v1/chat/completions", {**CHAT, "temperature": "hot"}),
    "a model": ("/v1/chat/completions", {**CHAT, "model": "nobody"}),
    "too long": ("/v1/chat/completions", {**CHAT, "messages": TOO_LONG}),
    "a schema": (
        "/v1/chat/completions",
        {**CHAT, "response_format": {"type": "json_schema", "json_schema": {}}},
    ),
    "a path": ("/v1/nothing", {}),
    "Anthropic's": ("/v1/messages", {"model": "tiny", "messages": TOO_LONG}),
    "Anthropic's, too long": (
        "/v1/messages",
        {"model": "tiny", "max_tokens": 4, "messages": TOO_LONG},
    ),
    "Responses'": ("/v1/responses", {"model": "tiny", "input": TEXT}),
    "Ollama's": ("/api/chat", {"model": "nobody", "messages": TOO_LONG}),
    "Ollama's, too long": ("/api/generate", {"model": "tiny", "prompt": TEXT}),
    "texts": ("/v1/completions", {"model": "tiny", "prompt": [TEXT] * 2}),
    "vectors": ("/v1/embeddings", {"model": "tiny", "input": TEXT}),
    "tokens": ("/tokenize", {"model": "tiny", "prompt": 3}),
}


@pytest.fixture(scope="module")
def running(tiny: Path) -> Iterator[Running]:
    with served(
        {"tiny": tiny},
        ServerSettings(port=0),
        opener=lambda files, options: PacedClient(),
    ) as running:
        running.post(CHAT)
        yield running


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def errors_left() -> list[str]:
    """Errors that went through the server and are still there."""
    left = []
    for value in gc.get_objects():
        if not isinstance(value, BaseException):
            continue
        trace = value.__traceback__
        while trace is not None:
            if "rvllm_local/server" in trace.tb_frame.f_code.co_filename:
                left.append(repr(value))
                break
            trace = trace.tb_next
    return left


def left_in_the_end() -> list[str]:
    """The same, once the server is done with a request that was answered."""
    for _ in range(200):
        left = errors_left()
        if not left:
            break
        time.sleep(0.02)
    return left


@pytest.mark.parametrize("kind", REFUSED)
def test_nothing_is_left_of_a_refusal(
    kind: str, running: Running, uncollected: None
) -> None:
    path, body = REFUSED[kind]
    answer = running.client.post(path, json=body)
    assert 400 <= answer.status_code < 500
    assert left_in_the_end() == []


def test_nothing_is_left_of_a_prompt_that_broke_its_process(
    running: Running, uncollected: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise ModelFileError("tokenizing was ended")

    monkeypatch.setattr(tokenize_routes, "_token_ids", fail)
    answer = running.client.post("/tokenize", json={"model": "tiny", "prompt": TEXT})
    assert answer.status_code == 400
    assert left_in_the_end() == []
