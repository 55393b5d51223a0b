"""What is of its own about the client over HTTP: a server that goes, an engine that dies, errors that keep their class."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from rvllm_local import LLM, SamplingParams, errors
from rvllm_local.clients import http_messages
from rvllm_local.clients.contract import make_requests, open_stream
from rvllm_local.clients.http import HttpClient, _error
from rvllm_local.engine.limits import EngineLimits
from rvllm_local.server.http.problems import problem_of
from rvllm_local.types import EventSink, FinishReason, Request
from tests.support.api import PacedClient, Running, served
from tests.support.processes import eventually
from tests.support.served import rvllm_serve, save_thinking

LONG = SamplingParams(max_tokens=1900, ignore_eos=True)
MESSAGES = [{"role": "user", "content": "x"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_thinking(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Running]:
    with served(
        {"tiny": folder}, opener=lambda files, options: PacedClient()
    ) as running:
        yield running


def test_where_no_server_answers_it_says_so() -> None:
    with pytest.raises(errors.EngineCrashedError, match="is rvllm serve running"):
        HttpClient("http://127.0.0.1:9")


def test_a_dying_engine_and_a_dying_server_end_every_request(folder: Path) -> None:
    with (
        rvllm_serve([folder], "--kv-memory", "6MB") as (base, process),
        LLM.connect(str(folder), base) as llm,
    ):
        greedy = SamplingParams(max_tokens=5, temperature=0)
        with LLM(str(folder), kv_memory="6MB") as local:
            assert (
                llm.chat(MESSAGES, greedy)[0].text
                == local.chat(MESSAGES, greedy)[0].text
            )
        stream = llm.stream("x", LONG)
        next(stream)
        os.kill(
            httpx.get(f"{base}/health", timeout=240).json()["engines"][0]["pid"],
            signal.SIGKILL,
        )
        with pytest.raises(errors.EngineCrashedError):
            list(stream)
        eventually(
            lambda: httpx.get(f"{base}/health", timeout=240).status_code == 200, 60
        )
        stream = llm.stream("x", LONG)
        next(stream)
        process.kill()
        with pytest.raises(errors.EngineCrashedError):
            list(stream)
        with pytest.raises(errors.EngineCrashedError):
            llm.generate("x", greedy)


@pytest.mark.parametrize(
    "error",
    [errors.QueueFullError("full", 3.0), errors.ContextOverflowError("prompt", "long"), errors.ParameterError("stop", "odd"),
     errors.ModelNotFoundError("no"), errors.MemoryBudgetError("large"), errors.EngineCrashedError("gone"),
     errors.EngineClosedError("shut"), errors.EngineError("broken"), errors.UnsupportedModelError("strange")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_an_error_keeps_its_class_on_its_way(error: errors.RvllmError) -> None:
    problem = problem_of(error)
    found = _error(
        httpx.Response(problem.status, headers=problem.headers(), json=problem.openai())
    )
    assert (type(found), str(found)) == (type(error), str(error))
    assert getattr(found, "parameter", None) == getattr(error, "parameter", None)
    assert getattr(found, "retry_after_s", None) == getattr(
        error, "retry_after_s", None
    )


def test_a_request_is_the_same_after_its_way() -> None:
    params = SamplingParams(
        max_tokens=3,
        temperature=0.5,
        stop="a",
        n=2,
        logit_bias={5: 1.5},
        logprobs=2,
        min_p=0.1,
    )
    requests = make_requests(
        [1, 2], params, grammar="g", priority=-3, kept_special=["<t>"]
    )
    found = http_messages.decode(http_messages.encode(requests, "m"))
    assert [
        (
            r.request_id,
            r.prompt_token_ids,
            r.seed,
            r.index,
            r.priority,
            r.grammar,
            r.kept_special,
        )
        for r in found
    ] == [
        (
            r.request_id,
            r.prompt_token_ids,
            r.seed,
            r.index,
            r.priority,
            r.grammar,
            r.kept_special,
        )
        for r in requests
    ]
    assert (
        found[0].params.stop_strings == ("a",)
        and found[0].params.logit_bias == {5: 1.5}
        and found[0].params.n == 2
    )


class Adapted(PacedClient):
    """Knows an adapter, and remembers which of its requests asked for it."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = EngineLimits(384, 100_000, 100_000, (0,), adapters=("b",))
        self.asked: list[str | None] = []

    def start(self, requests: Sequence[Request], sink: EventSink) -> None:
        self.asked.append(requests[0].adapter)
        super().start(requests, sink)


def test_a_request_is_answered_with_its_adapter(folder: Path) -> None:
    with served(
        {"tiny": folder},
        opener=lambda files, options: Adapted(),
        adapters=[("b", str(folder))],
    ) as running:
        client = HttpClient(f"http://127.0.0.1:{running.port}")
        for adapter in (None, "b"):
            assert list(
                open_stream(
                    client,
                    make_requests([1], SamplingParams(max_tokens=2), adapter=adapter),
                )
            )
        assert running.engine.asked == [None, "b"]
        client.close()


def test_any_open_request_can_be_cancelled_by_its_id_and_ids_are_unique(
    running: Running,
) -> None:
    client = HttpClient(f"http://127.0.0.1:{running.port}")
    requests = make_requests([1], LONG, request_id="mine")
    stream = open_stream(client, requests)
    next(stream)
    with pytest.raises(errors.ParameterError, match="already open"):
        client.start(requests, print)
    assert running.client.delete("/v1/engine/requests/mine").json() == {
        "id": "mine",
        "cancelled": True,
    }
    assert list(stream)[-1].finish_reason is FinishReason.CANCELLED
    assert running.client.delete("/v1/engine/requests/mine").status_code == 404
    client.close()


@pytest.mark.parametrize(
    "change",
    [{"seeds": []}, {"seeds": [-1]}, {"seeds": [2**64]}, {"seeds": [1] * 17}, {"request_id": ""}, {"request_id": "a/b"},
     {"request_id": "x" * 129}, {"prompt_token_ids": []}, {"prompt_token_ids": [-1]}, {"prompt_token_ids": [True]}, {"colour": 1},
     {"params": {}}, {"params": {"max_tokens": 0}}, {"params": {"max_tokens": 1, "n": 2}}, {"priority": 101},
     {"params": {"max_tokens": 1, "logit_bias": {"x": 1}}}, {"kept_special": ["a"] * 65}],
)  # fmt: skip
def test_a_wrong_field_is_refused_by_its_name(
    running: Running, change: dict[str, object]
) -> None:
    body = {
        "request_id": "a",
        "prompt_token_ids": [1],
        "params": {"max_tokens": 1},
        "seeds": [1],
        **change,
    }
    answer = running.post(body, http_messages.GENERATE)
    assert answer.status_code == 400, answer.text
    assert "params" in change or answer.json()["error"]["param"].startswith(
        next(iter(change)).split("_")[0]
    )
