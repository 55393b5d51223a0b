"""Endpoints that are odd, broken or dishonest in ways of their own: odd ones are read, others are errors for their own reason."""

from __future__ import annotations

import gzip
import json
import math
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from rvllm_local.bench import load
from rvllm_local.bench.load import Endpoint, Interrupted, Run, run
from rvllm_local.bench.metrics import Slo, failures, summary
from rvllm_local.bench.outcome import Failure, Outcome
from rvllm_local.bench.serve import warnings
from rvllm_local.bench.trace import Session, Trace, Turn
from tests.bench.endpoint import DONE, GOOD, HEAD, WORDS, Scripted, Step, chunk, usage
from tests.support.processes import eventually

ASK = Turn(({"role": "user", "content": "Is the sea salty?"},), 4)
ENDING = [chunk(finish="length"), usage(), DONE]


def play(steps: list[Step], count: int = 1, timeout_s: float = 60.0) -> Run:
    sessions = tuple(Session(0.0, (ASK,)) for _ in range(count))
    with Scripted(steps) as server:
        return run(Endpoint(server.url, timeout_s=timeout_s), Trace("test", sessions))


def only(found: Run) -> Outcome:
    (outcome,) = found.outcomes
    return outcome


def in_lines(event: bytes) -> bytes:
    """The same event over several data lines."""
    return (
        b"\n".join(
            b"data: " + line
            for line in json.dumps(json.loads(event[6:]), indent=1)
            .encode()
            .splitlines()
        )
        + b"\n\n"
    )


def body(parts: list[bytes]) -> bytes:
    return b"".join(parts)


def by_bytes(data: bytes) -> Iterator[bytes]:
    return (data[index : index + 1] for index in range(len(data)))


EVENTS = [chunk(""), *WORDS, *ENDING]
DELTA = b'data: {"choices": [{"index": 0, "delta": %s, "finish_reason": ""}]}\n\n'
ODD: dict[str, list[Step]] = {
    "CRLF": [HEAD, body(EVENTS).replace(b"\n", b"\r\n")],
    "no space after data:": [HEAD, body(EVENTS).replace(b"data: ", b"data:")],
    "an event over many lines": [HEAD, *map(in_lines, EVENTS[:-1]), DONE],
    "a byte at a time, with letters of several": [
        HEAD,
        *by_bytes(body([*WORDS[:3], chunk("größe 海"), *ENDING])),
    ],
    "raw UTF-8": [
        HEAD,
        *WORDS[:3],
        DELTA % '{"content": "größe 海"}'.encode(),
        *ENDING,
    ],
    "an empty finish_reason until the end": [
        HEAD,
        *(DELTA % b'{"content": "la "}',) * 4,
        *ENDING,
    ],
    "usage in every event": [
        HEAD,
        *(chunk("la ", usage={"completion_tokens": n}) for n in range(1, 5)),
        *ENDING,
    ],
    "a last line without an end": [HEAD, *EVENTS[:-1], b"data: [DONE]"],
    "comments and other fields": [
        HEAD,
        b": hello\n\nretry: 5\nid: 7\nevent: message\n",
        *EVENTS,
    ],
    "a thought under two names": [
        HEAD,
        *(DELTA % b'{"reasoning": "la", "reasoning_content": "la"}',) * 4,
        *ENDING,
    ],
    "gzip": [
        HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
        + gzip.compress(body(EVENTS))
    ],
    "a tool call whose function comes later": [
        HEAD,
        DELTA % b'{"tool_calls": [{"index": 0, "id": "a"}]}',
        *(DELTA % b'{"tool_calls": [{"index": 0, "function": {"arguments": "{ 1"}}]}',)
        * 4,
        *ENDING,
    ],
}


@pytest.mark.parametrize("name", ODD)
def test_odd_streams_are_read(name: str) -> None:
    outcome = only(play(ODD[name]))
    assert outcome.failure is None, outcome.detail
    assert (outcome.tokens, len(outcome.times)) == (4, 4)


DEEP = b"[" * 100_000
BAD: dict[str, tuple[list[Step], Failure, str]] = {
    "a page on one line": ([HEAD, b"<html>sign in</html>"], Failure.UNFINISHED, "sign in"),
    "JSON without a bottom": ([HEAD, b"data: " + DEEP + b"\n\n", DONE], Failure.GARBAGE, "not JSON"),
    "an error after tokens": ([HEAD, *WORDS, b'data: {"error": "out of memory"}\n\n'], Failure.ERROR_EVENT, "out of memory"),
    "an answer broken off": ([HEAD, *WORDS, chunk(finish="error"), usage(), DONE], Failure.UNFINISHED, "error"),
    "an answer that was censored": ([HEAD, *WORDS, chunk(finish="content_filter"), DONE], Failure.UNFINISHED, "content_filter"),
    "only empty finish_reasons": ([HEAD, *WORDS, chunk(finish=""), DONE], Failure.UNFINISHED, "no finish_reason"),
    "a finish_reason that is none": ([HEAD, *WORDS, DELTA.replace(b'""', b"7") % b"{}", DONE], Failure.GARBAGE, "TypeError"),
    "choices that nobody asked for": (
        [HEAD, *WORDS, b'data: {"choices": [{"index": 1, "delta": {"content": "la"}}]}\n\n', *ENDING],
        Failure.GARBAGE,
        "ValueError",
    ),
    "only [DONE]": ([HEAD, DONE], Failure.UNFINISHED, "no finish_reason"),
    "more events than tokens, without usage": (
        [HEAD, *(chunk("a"),) * 40, chunk(finish="length"), DONE],
        Failure.USAGE,
        "40 events",
    ),
    "no token in some events": ([HEAD, *WORDS, chunk(finish="stop"), usage(completion=0), DONE], Failure.USAGE, "0 tokens"),
    "an event without an end": ([HEAD, b"data: {\n" * 2000], Failure.GARBAGE, "no end"),
    "gzip that is none": (
        [HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n"), body(EVENTS)],
        Failure.GARBAGE,
        "decompress",
    ),
    "a status whose body never comes": (
        [b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 9\r\n\r\nbu", "hang"],
        Failure.STATUS,
        "503 from /v1/chat/completions: bu",
    ),
    "a status whose body never ends": (
        [b"HTTP/1.1 500 Oh\r\n\r\n", *(b"la " * 1000,) * 1000, "hang"],
        Failure.STATUS,
        "500 from",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_streams_are_errors_for_their_own_reason(name: str) -> None:
    steps, failure, said = BAD[name]
    found = play(steps)
    outcome = only(found)
    assert (outcome.failure, said in outcome.detail) == (failure, True), (
        outcome.failure,
        outcome.detail,
    )
    figures = summary(found.outcomes, found.wall_s, Slo())
    assert figures["tokens_per_s"].value == 0 and math.isinf(figures["itl_p50"].value)


def test_what_is_held_back_and_sent_at_once_is_not_fast() -> None:
    found = play([HEAD, 0.2, body(EVENTS)])
    outcome = only(found)
    assert outcome.failure is None and outcome.gaps == []
    figures = summary(found.outcomes, found.wall_s, Slo())
    assert "itl_p50" not in figures, (
        "no time between events was seen: neither 0 nor a failure"
    )
    assert "3 of 4 events came at once" in warnings(found)


def test_one_answer_without_gaps_leaves_the_interval_of_the_others() -> None:
    times = [[0.5], [0.5, 0.6, 0.7]]
    outcomes = [
        Outcome("small", 0, 0.0, 4, times=row, ended=1.0, finish_reason="stop")
        for row in times
    ]
    figure = summary(outcomes, 1.0, Slo())["itl_p99"]
    assert figure.high == pytest.approx(0.1), "nothing failed"


def test_a_refused_request_counts_in_every_percentile() -> None:
    """However many of the answers that did come were fluent: nine of ten came not at all."""
    whole = Outcome(
        "small", 0, 0.0, 3, times=[0.1, 0.2, 0.3], ended=0.3, finish_reason="length"
    )
    refused = [Outcome("small", 0, 0.0, 3, failure=Failure.STATUS) for _ in range(9)]
    assert math.isinf(summary([whole, *refused], 1.0, Slo())["itl_p50"].value)


def test_a_secret_that_an_endpoint_repeats_is_not_told() -> None:
    key = "sk-very-secret"
    with Scripted(
        [
            f"HTTP/1.1 401 No\r\nConnection: close\r\n\r\nwrong key: {key}\x1b[2J\nbye".encode()
        ]
    ) as server:
        endpoint = Endpoint(
            server.url, headers={"Authorization": f"Bearer {key}"}, secrets=(key,)
        )
        outcome = only(run(endpoint, Trace("test", (Session(0.0, (ASK,)),))))
    assert (
        outcome.detail == "401 from /v1/chat/completions: wrong key: [secret] [2J bye"
    )


def test_a_request_that_cannot_be_sent_costs_only_itself() -> None:
    bad = Turn(({"role": "user", "content": "\ud800"},), 4)
    with Scripted(GOOD) as server:
        found = run(
            Endpoint(server.url),
            Trace("test", (Session(0.0, (bad,)), Session(0.0, (ASK,)))),
        )
    assert [one.failure for one in found.outcomes] == [Failure.CLIENT, None]


def test_our_own_limits_are_not_the_endpoints_errors() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(10)]
    reason, num_ours = load._reason, iter(range(6))
    with Scripted(["hang"]) as server:
        most = max(held) + 30

        def noted(error: Exception) -> tuple[Failure, str]:
            """The reason; the connections that hang end after the sixth of our own."""
            told = reason(error)
            if told[0] is Failure.CLIENT and next(num_ours, None) == 5:
                server.release.set()
            return told

        def limit(_connections: int) -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, before[1]))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(load, "prepare_limits", limit)
            patch.setattr(load, "_reason", noted)
            try:
                found = run(
                    Endpoint(server.url, timeout_s=60.0),
                    Trace("test", (Session(0.0, (ASK,)),) * 60),
                )
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
    for number in held:
        os.close(number)
    counted = failures(found.outcomes)
    assert counted.get("client", 0) > 5 and "refused" not in counted, counted
    assert "Too many open files" in next(
        one.detail for one in found.outcomes if one.failure is Failure.CLIENT
    )


def test_an_interrupt_keeps_what_had_ended() -> None:
    sessions = (Session(0.0, (ASK,)), Session(0.0, (ASK,)), Session(60.0, (ASK,)))
    with Scripted(GOOD) as server, pytest.raises(Interrupted) as caught:

        def interrupt() -> None:
            eventually(lambda: server.num_left == 2, 60)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        run(Endpoint(server.url), Trace("test", sessions))
    assert [one.failure for one in caught.value.run.outcomes] == [None, None]
    assert caught.value.num_open == 0 and caught.value.run.wall_s < 30


class Busy(Endpoint):
    """A client that has something else to do before it sends."""

    def body(self, *arguments: Any) -> bytes:
        time.sleep(0.3)
        return super().body(*arguments)


def test_a_client_that_is_late_says_so() -> None:
    with Scripted(GOOD) as server:
        found = run(Busy(server.url), Trace("test", (Session(0.0, (ASK,)),) * 3))
    assert (
        found.busy_s > 0.2
        and summary(found.outcomes, found.wall_s, Slo())["ttft_p99"].value > 0.5
    )
    assert "this client was late itself" in warnings(found)
