"""The one contract between the engine and what stands on it: LLM, command line, server and terminal chat.

Requests are token ids and sampling parameters; answers are streams of events. No text is tokenized here.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from rvllm_local.engine.core import EngineCore, EngineLimits
from rvllm_local.engine.loop import EngineLoop
from rvllm_local.engine.sequence import EventSink
from rvllm_local.engine.stream import TokenStream
from rvllm_local.types import FinishReason, Request, SamplingParams, StreamEvent


class Client(Protocol):
    """What every way of reaching an engine offers."""

    limits: EngineLimits

    def submit(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> TokenStream:
        """Queue a request (`params.n` choices) and return its stream. Raises `ParameterError` if it cannot be served."""

    def stats(self) -> dict[str, int | str]:
        """The engine's counters and gauges."""

    def close(self) -> None:
        """End open requests and free the engine."""


class InProcessClient:
    """Talks to an engine thread in this process."""

    def __init__(self, loop: EngineLoop, limits: EngineLimits) -> None:
        self._loop = loop
        self.limits = limits

    def submit(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> TokenStream:
        requests = make_requests(prompt_token_ids, params)
        self.limits.check(requests[0])
        stream = TokenStream(requests[0].request_id, len(requests), self.cancel)

        def add(core: EngineCore) -> None:
            for request in requests:
                _add(core, request, stream.put)

        self._loop.post(add)
        return stream

    def cancel(self, request_id: str) -> None:
        """Ask the engine to end a request; its stream ends with `cancelled`."""
        self._loop.post(lambda core: core.cancel(request_id))

    def stats(self) -> dict[str, int | str]:
        return self._loop.call(EngineCore.stats)

    def close(self) -> None:
        self._loop.close()


def make_requests(prompt_token_ids: Sequence[int], params: SamplingParams) -> list[Request]:
    """One request a choice. Choice i of a seeded request uses seed + i, so that choices differ and repeat."""
    request_id = uuid.uuid4().hex
    seed = secrets.randbits(64) if params.seed is None else params.seed
    first = Request(request_id, tuple(prompt_token_ids), params, seed % 2**64)
    return [replace(first, seed=(seed + index) % 2**64, index=index) for index in range(params.n)]


def _add(core: EngineCore, request: Request, sink: EventSink) -> None:
    try:
        core.add(request, sink)
    except Exception as error:  # one bad request ends alone
        sink(StreamEvent("", (), FinishReason.ERROR, index=request.index, error=str(error)))
