"""The load generator: what a bad endpoint does is an error, and never a fast request."""

from __future__ import annotations

import json
import math
import socket
from functools import partial
from typing import Any

import pytest

from rvllm_local.bench import load
from rvllm_local.bench.load import Endpoint, Run, run
from rvllm_local.bench.metrics import Slo, failures, summary
from rvllm_local.bench.outcome import Failure, Outcome
from rvllm_local.bench.trace import Session, Trace, Turn
from tests.bench.endpoint import DONE, GOOD, HEAD, WORDS, Scripted, Step, chunk, usage
from tests.support.processes import eventually

ASK = Turn(({"role": "user", "content": "Is the sea salty?"},), 4)


def one(at: float = 0.0, *turns: Turn) -> Session:
    return Session(at, turns or (ASK,))


def play(
    steps: list[Step], *sessions: Session, timeout_s: float = 60.0
) -> tuple[Run, list[dict[str, object]]]:
    with Scripted(steps) as server:
        made = Trace("test", sessions or (one(),))
        return run(Endpoint(server.url, timeout_s=timeout_s), made), server.bodies


def test_a_good_answer_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Outcome] = []

    def noted(*arguments: Any) -> Outcome:
        made.append(Outcome(*arguments))
        return made[-1]

    monkeypatch.setattr(load, "Outcome", noted)
    steps: list[Step] = [HEAD, chunk(""), 0.2]
    for number, word in enumerate(WORDS, start=1):
        # A client that is late must not find two words at once.
        has_come = partial(lambda count: len(made[0].times) == count, number)
        steps += [word, partial(eventually, has_come, 60), 0.05]
    found, bodies = play([*steps, *GOOD[-3:]])
    (outcome,) = found.outcomes
    assert outcome.failure is None, outcome.detail
    assert outcome.ttft is not None and outcome.ttft >= 0.19, (
        "an event without content is not a first token"
    )
    assert len(outcome.gaps) == 3 and sum(outcome.gaps) > 0.1
    assert (outcome.tokens, outcome.usage.prompt, outcome.usage.cached) == (4, 20, 0)
    assert bodies[0]["stream"] is True and bodies[0]["max_tokens"] == 4


BAD: dict[str, tuple[list[Step], Failure]] = {
    "refuses": ([b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\n\r\nbusy"], Failure.STATUS),
    "fails": ([b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n"], Failure.STATUS),
    "redirects": ([b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n"], Failure.STATUS),
    "says nothing": (["hang"], Failure.HUNG),
    "sends only comments": ([HEAD, *([b": alive\n\n", 0.1] * 600)], Failure.HUNG),
    "hangs within an answer": ([HEAD, *WORDS[:2], "hang"], Failure.HUNG),
    "hangs up": ([], Failure.CUT),
    "cuts the answer": (
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\ndata:\r\n"],
        Failure.CUT,
    ),
    "sends an error event": ([HEAD, *WORDS[:2], b'data: {"error": {"message": "out of memory"}}\n\n', DONE], Failure.ERROR_EVENT),
    "ends without [DONE]": ([HEAD, *WORDS, chunk(finish="length"), usage()], Failure.UNFINISHED),
    "gives no finish_reason": ([HEAD, *WORDS, usage(), DONE], Failure.UNFINISHED),
    "ends within a line": ([HEAD, *WORDS, b"data: [DO"], Failure.UNFINISHED),
    "is empty": ([HEAD, chunk(""), chunk(finish="stop"), usage(completion=0), DONE], Failure.EMPTY),
    "claims tokens without text": ([HEAD, chunk(finish="length"), usage(), DONE], Failure.EMPTY),
    "sends no JSON": ([HEAD, b"data: {oops\n\n", DONE], Failure.GARBAGE),
    "sends another API's JSON": ([HEAD, b'data: {"text": "hi"}\n\n', DONE], Failure.GARBAGE),
    "sends wrong types": ([HEAD, b'data: {"choices": [{"delta": {"content": 5}}]}\n\n', DONE], Failure.GARBAGE),
    "does not stream": ([HEAD, b'{"choices": [{"message": {"content": "hi"}}]}'], Failure.UNFINISHED),
    "sends a page": ([HEAD, b"<html>\n<body>hello\n", DONE], Failure.GARBAGE),
    "counts in words": ([*GOOD[:-2], usage(completion="four"), DONE], Failure.GARBAGE),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_answer_is_an_error(name: str) -> None:
    steps, expected = BAD[name]
    found, _ = play(steps, timeout_s=1.0 if expected is Failure.HUNG else 60.0)
    (outcome,) = found.outcomes
    assert outcome.failure is expected, outcome.detail
    figures = summary(found.outcomes, found.wall_s, Slo())
    assert (
        figures["errors"].value == 1
        and figures["tokens_per_s"].value == 0
        and figures["goodput"].value == 0
    )
    assert math.isinf(figures["ttft_p50"].value) and math.isinf(
        figures["e2e_p99"].value
    )


def test_nobody_listens() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    found = run(Endpoint(f"http://127.0.0.1:{port}/v1"), Trace("test", (one(),)))
    assert failures(found.outcomes) == {"refused": 1}


LIES = {
    "more than asked for": usage(completion=400),
    "fewer than the length": usage(completion=3),
    "less than nothing": usage(completion=-4),
    "cached more than there was": usage(cached=21),
    "a prompt without end": usage(prompt=10**6),
}


@pytest.mark.parametrize("name", LIES)
def test_usage_that_lies_is_an_error(name: str) -> None:
    found, _ = play([*GOOD[:-2], LIES[name], DONE])
    assert failures(found.outcomes) == {"usage lies": 1}


@pytest.mark.parametrize(
    ("events", "claimed", "with_tokenizer", "lies"),
    [
        (48, 48, False, False),
        (5, 48, False, True),  # a few words, said to be many tokens
        (24, 48, False, True),
        (24, 48, True, True),
        (48, 10, False, True),  # a token can't come in several events
        (47, 48, True, False),  # one without text
    ],
)
def test_claims_are_held_against_what_came(
    events: int, claimed: int, with_tokenizer: bool, lies: bool
) -> None:
    outcome = Outcome(
        "small",
        0,
        0.0,
        48,
        200,
        times=[0.1 * index for index in range(events)],
        finish_reason="stop",
    )
    outcome.text = ["word "] * events
    outcome.usage.completion = claimed
    outcome.check((lambda text: len(text.split())) if with_tokenizer else None)
    assert (outcome.failure is Failure.USAGE) == lies, outcome.detail


@pytest.mark.parametrize("text", ["🦀🦀", "1,2,3,4,5,6,", "ÂÂÂÂ", "\n" * 8])
def test_a_byte_may_be_a_token(text: str) -> None:
    outcome = Outcome("small", 0, 0.0, 8, 200, times=[0.1, 0.2], finish_reason="stop")
    outcome.text = [text]
    outcome.usage.completion = 8
    outcome.check()
    assert outcome.failure is None, outcome.detail


def test_arrivals_do_not_wait_for_answers() -> None:
    """Four requests at 20 a second: an open loop sends them all before the first is answered."""
    sessions = [one(index * 0.05) for index in range(4)]
    with Scripted([]) as server:

        def all_have_come() -> None:
            eventually(lambda: len(server.bodies) == 4, 60)

        server.steps = [HEAD, all_have_come, 0.5, *GOOD[1:]]
        endpoint = Endpoint(server.url, timeout_s=60.0)
        found = run(endpoint, Trace("test", tuple(sessions)))
    assert [outcome.failure for outcome in found.outcomes] == [None] * 4
    assert all(outcome.sent < found.outcomes[0].ended for outcome in found.outcomes), (
        "none waits for an answer"
    )
    assert all(
        outcome.ttft is not None and outcome.ttft >= 0.49 for outcome in found.outcomes
    )


def test_a_session_grows_and_ends_with_its_first_error() -> None:
    more = Turn(({"role": "user", "content": "And the lake?"},), 4)
    found, bodies = play(GOOD, one(0.0, ASK, more))
    assert [outcome.turn for outcome in found.outcomes] == [0, 1]
    assert [message["role"] for message in bodies[1]["messages"]] == [
        "user",
        "assistant",
        "user",
    ]  # type: ignore[attr-defined,index,union-attr]
    assert found.outcomes[1].scheduled >= found.outcomes[0].ended
    found, bodies = play(GOOD[:-1], one(0.0, ASK, more))
    assert len(bodies) == 1 and failures(found.outcomes) == {"unfinished": 2}


def test_called_tools_get_a_result() -> None:
    call = {
        "index": 0,
        "id": "call_7",
        "function": {"name": "search", "arguments": '{"text": '},
    }
    rest = {"index": 0, "function": {"arguments": '"sea"}'}}
    events = [
        b'data: {"choices": [{"index": 0, "delta": {"tool_calls": [%s]}}]}\n\n'
        % json.dumps(part).encode()
        for part in (call, rest)
    ]
    steps: list[Step] = [
        HEAD,
        *events,
        chunk(finish="tool_calls"),
        usage(completion=9),
        DONE,
    ]
    ask = Turn(({"role": "user", "content": "Where is the sea?"},), 20)
    found, bodies = play(
        steps, one(0.0, ask, Turn(({"role": "user", "content": "It is here."},), 20))
    )
    assert [outcome.failure for outcome in found.outcomes] == [None, None]
    _, assistant, result = bodies[1]["messages"]  # type: ignore[misc]
    assert assistant["tool_calls"][0]["function"] == {
        "name": "search",
        "arguments": '{"text": "sea"}',
    }  # type: ignore[index]
    assert result == {
        "role": "tool",
        "tool_call_id": "call_7",
        "content": "It is here.",
    }
