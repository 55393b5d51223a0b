"""The client contract, the same for an engine in this process, for one in its own, and for a server's over HTTP."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rvllm_local import LLM, SamplingParams
from rvllm_local.clients.contract import Client, make_requests, open_stream
from rvllm_local.clients.http import HttpClient
from rvllm_local.clients.process.client import ProcessClient
from rvllm_local.errors import EngineClosedError, ParameterError
from rvllm_local.options import EngineOptions
from rvllm_local.text.grammar.formats import (
    grammar_for_format,
)
from rvllm_local.types import FinishReason, StreamEvent
from tests.support.api import served
from tests.support.tiny import save_tiny

GREEDY = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
KINDS = ("thread", "process", "http")
OPTIONS = EngineOptions(kv_memory=4_000_000, prefill_chunk=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    save_tiny("llama", path, seed=2)
    return path


@contextlib.contextmanager
def opened(kind: str, folder: Path) -> Iterator[Client]:
    with contextlib.ExitStack() as stack:
        if kind == "process":
            client: Client = ProcessClient(str(folder), OPTIONS)
        elif kind == "http":
            running = stack.enter_context(served({"llama": folder}, options=OPTIONS))
            client = HttpClient(f"http://127.0.0.1:{running.port}")
        else:
            client = LLM(str(folder), kv_memory="4MB", prefill_chunk=32)._client
        stack.callback(client.close)
        yield client


@pytest.fixture(scope="module", params=KINDS)
def client(request: pytest.FixtureRequest, folder: Path) -> Iterator[Client]:
    with opened(request.param, folder) as client:
        yield client


def test_an_id_that_is_open_is_refused_and_its_request_goes_on(client: Client) -> None:
    asked = make_requests(
        [5, 6, 7],
        SamplingParams(max_tokens=200, temperature=0, ignore_eos=True),
        request_id="twice",
    )
    first = open_stream(client, asked)
    tokens = list(next(first).token_ids)
    with pytest.raises(ParameterError, match="already open"):
        list(open_stream(client, asked))
    tokens += [token for event in first for token in event.token_ids]
    assert len(tokens) == 200


def test_a_prompt_is_scored_the_same_everywhere(client: Client, folder: Path) -> None:
    prompt = list(range(5, 60))
    params = SamplingParams(max_tokens=0, temperature=0, prompt_logprobs=2)
    with LLM(str(folder)) as llm:
        expected = llm.generate(prompt, params)[0].prompt_logprobs
    assert expected is not None
    events = list(client.submit(prompt, params))
    records = [part for event in events for part in event.prompt_logprobs or ()]
    assert len(records) == len(prompt) and records[0] is None
    for record, same in zip(records[1:], expected[1:], strict=True):
        assert record is not None and same is not None
        assert record.token_id == same.token_id
        assert record.logprob == pytest.approx(same.logprob, abs=1e-4)
    assert events[-1].finish_reason is FinishReason.LENGTH


def test_tokens_are_the_same_everywhere(client: Client, folder: Path) -> None:
    with LLM(str(folder)) as llm:
        expected = llm.generate([5, 6, 7], GREEDY)[0]
    events = list(client.submit([5, 6, 7], GREEDY))
    assert (
        tuple(token for event in events for token in event.token_ids)
        == expected.token_ids
    )
    assert "".join(event.text for event in events) == expected.text
    assert [event.finish_reason for event in events] == [None] * 7 + [
        FinishReason.LENGTH
    ]


def test_every_choice_gets_one_last_event(client: Client) -> None:
    done, events = threading.Event(), list[StreamEvent]()

    def sink(event: StreamEvent) -> None:
        events.append(event)
        if sum(event.finish_reason is not None for event in events) == 3:
            done.set()

    client.start(
        make_requests(
            [5, 6], SamplingParams(max_tokens=5, n=3, seed=1, ignore_eos=True)
        ),
        sink,
    )
    assert done.wait(60)
    assert sorted(event.index for event in events if event.finish_reason) == [0, 1, 2]


def test_a_cancelled_request_ends_and_frees_its_blocks(client: Client) -> None:
    stream = client.submit(
        [5] * 50, SamplingParams(max_tokens=1500, temperature=0, ignore_eos=True)
    )
    next(stream)
    client.cancel(stream.request_id)
    assert list(stream)[-1].finish_reason is FinishReason.CANCELLED
    stats = client.stats()
    assert stats["blocks_free"] == stats["blocks_total"]
    client.cancel("unknown")


def test_an_open_request_can_be_seen(client: Client) -> None:
    with client.submit(
        [5] * 40, SamplingParams(max_tokens=1500, temperature=0, ignore_eos=True)
    ) as stream:
        next(stream)
        (status,) = client.snapshot().requests
        assert (status.request_id, status.state, status.prompt_tokens) == (
            stream.request_id,
            "decode",
            40,
        )
        assert status.blocks >= 2 and "u" in client.snapshot().block_map


def test_bad_requests_are_refused_by_name(client: Client) -> None:
    with pytest.raises(ParameterError, match="prompt"):
        client.submit([], GREEDY)
    with pytest.raises(ParameterError, match="context"):
        client.submit([5] * 100_000, GREEDY)


def test_a_finished_request_is_explained(client: Client) -> None:
    requests = make_requests([9, 8, 7], GREEDY)
    done = threading.Event()
    client.start(requests, lambda event: done.set() if event.finish_reason else None)
    assert done.wait(60)
    (report,) = client.explain(requests[0].request_id)
    assert (report.prompt_tokens, report.output_tokens) == (3, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_closing_ends_what_is_open(kind: str, folder: Path) -> None:
    ended = threading.Event()
    events: list[StreamEvent] = []

    def sink(event: StreamEvent) -> None:
        events.append(event)
        if event.finish_reason is not None:
            ended.set()

    with opened(kind, folder) as client:
        client.start(
            make_requests([5], SamplingParams(max_tokens=1500, ignore_eos=True)), sink
        )
        client.close()
        assert ended.wait(60) and events[-1].finish_reason is FinishReason.ERROR
        assert events[-1].error_kind == "EngineClosedError"
        with pytest.raises(EngineClosedError):
            client.submit([5], GREEDY)


def test_many_threads_get_their_own_answers(client: Client) -> None:
    params = SamplingParams(max_tokens=12, seed=3, ignore_eos=True)

    def tokens(number: int) -> list[int]:
        events = client.submit([1 + number, 2, 3 * number], params)
        return [token for event in events for token in event.token_ids]

    alone = [tokens(number) for number in range(6)]
    found: dict[int, list[int]] = {}
    threads = [
        threading.Thread(target=lambda at=number: found.update({at: tokens(at)}))
        for number in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(6)] == alone


def test_a_consumer_that_fails_harms_itself_alone(client: Client) -> None:
    params = SamplingParams(max_tokens=100, temperature=0, ignore_eos=True)
    calls: list[StreamEvent] = []

    def broken(event: StreamEvent) -> None:
        calls.append(event)
        raise RuntimeError("no")

    alone = [event.token_ids for event in client.submit([1, 2], params)]
    with client.submit([1, 2], params) as other:
        client.start(
            make_requests([3], SamplingParams(max_tokens=1500, n=2, ignore_eos=True)),
            broken,
        )
        assert [event.token_ids for event in other] == alone
    assert len(calls) == 1
    list(client.submit([1], GREEDY))
    assert client.stats()["requests_running"] == 0


def test_a_seed_a_grammar_and_logprobs_are_the_same_everywhere(
    client: Client, folder: Path
) -> None:
    grammar = grammar_for_format({"type": "choice", "choices": ["the", "then"]})
    params = SamplingParams(
        max_tokens=6,
        seed=2**63 + 1,
        n=2,
        logprobs=3,
        logit_bias={7: -5.0},
        stop=["qq"],
        top_k=9,
    )
    requests = make_requests([5, 6, 7], params, grammar=grammar, priority=3)
    events = list(open_stream(client, requests))
    with LLM(str(folder)) as llm:
        expected = list(
            open_stream(llm._client, make_requests([5, 6, 7], params, grammar=grammar))
        )
    for index in range(2):
        ours, theirs = (
            [e for e in rows if e.index == index and e.token_ids]
            for rows in (events, expected)
        )
        assert [e.token_ids for e in ours] == [e.token_ids for e in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert one.logprobs and other.logprobs
            assert one.logprobs[0].logprob == pytest.approx(
                other.logprobs[0].logprob, abs=1e-3
            )
            drawn = one.logprobs[0]
            alternatives = dict(drawn.top)
            # The drawn token is there too, though a bias put it below the best three.
            assert drawn.token_id in alternatives
            assert len(alternatives) in (3, 4)
    with pytest.raises(ParameterError):
        list(
            open_stream(
                client,
                make_requests(
                    [5], GREEDY, grammar='{"grammars": [{"lark_grammar": "start: ("}]}'
                ),
            )
        )
