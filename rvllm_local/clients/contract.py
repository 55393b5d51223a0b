"""The one contract between the engine and what stands on it.

LLM, command line, server and terminal chat stand on it. Requests are token ids and
sampling parameters, answers are streams of events. No text is tokenized here.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from rvllm_local.clients.stream import TokenStream
from rvllm_local.engine.limits import EngineLimits
from rvllm_local.types import (
    EngineSnapshot,
    EventSink,
    Request,
    RequestReport,
    SamplingParams,
)


class Client(Protocol):
    """The way to an engine. Every method may be called from any thread.

    Clients inherit `submit`; all else is theirs.
    """

    limits: EngineLimits

    def start(self, requests: Sequence[Request], sink: EventSink) -> None:
        """Queue the choices of one request, which differ in seed and index alone.

        `sink` gets each event, on a thread of the client's, and must not block. Each
        choice that was accepted gets exactly one event with a finish reason. Raises
        `ParameterError` if the request can never be served, `QueueFullError` if too
        many wait, and `EngineCrashedError` or `EngineClosedError` if there is no
        engine.
        """

    def submit(
        self, prompt_token_ids: Sequence[int], params: SamplingParams
    ) -> TokenStream:
        """Queue a request (`params.n` choices) and return its stream.

        Raises as `start` does.
        """
        requests = make_requests(prompt_token_ids, params)
        return open_stream(self, requests)

    def cancel(self, request_id: str) -> None:
        """Ask the engine to end a request. Unknown ids are left alone.

        Its choices end with `cancelled`.
        """

    def stats(self) -> dict[str, int | float | str]:
        """The engine's counters and gauges."""

    def snapshot(self) -> EngineSnapshot:
        """The engine at work: blocks, queue and open requests."""

    def explain(self, request_id: str) -> tuple[RequestReport, ...]:
        """The reports of a finished request's choices.

        Empty for a request that is unknown or forgotten.
        """

    def close(self) -> None:
        """End open requests and free the engine."""


def open_stream(client: Client, requests: Sequence[Request]) -> TokenStream:
    """Start the choices of one request and return their stream."""
    stream = TokenStream(requests[0].request_id, len(requests), client.cancel)
    client.start(requests, stream.put)
    return stream


def make_requests(
    prompt_token_ids: Sequence[int],
    params: SamplingParams,
    *,
    request_id: str | None = None,
    priority: int = 0,
    grammar: str | None = None,
    kept_special: Sequence[str] = (),
    adapter: str | None = None,
    num_shared: int = 0,
) -> list[Request]:
    """One request a choice.

    Choice i of a seeded request uses seed + i, so that choices differ and repeat.
    """
    seed = params.seed
    if seed is None:
        seed = secrets.randbits(64)
    first = Request(
        request_id or uuid.uuid4().hex,
        tuple(prompt_token_ids),
        params,
        seed % 2**64,
        priority=priority,
        grammar=grammar,
        kept_special=tuple(kept_special),
        adapter=adapter,
        num_shared=num_shared,
    )
    requests = []
    for index in range(params.n):
        choice_seed = (seed + index) % 2**64
        requests.append(replace(first, seed=choice_seed, index=index))
    return requests
