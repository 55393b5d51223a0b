"""The client whose engine is a thread of this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rvllm_local.clients.admission import AdmissionGate
from rvllm_local.clients.gated import GatedClient
from rvllm_local.engine.core_contract import Core
from rvllm_local.engine.limits import EngineLimits
from rvllm_local.engine.loop import EngineLoop
from rvllm_local.text.grammar.compiled import Grammars
from rvllm_local.types import (
    EngineSnapshot,
    EventSink,
    FinishReason,
    Request,
    RequestReport,
    StreamEvent,
)

if TYPE_CHECKING:
    from rvllm_local.text.grammar.matcher import Matcher


class InProcessClient(GatedClient):
    """Talks to an engine thread in this process.

    Grammars are compiled on the caller's thread.
    """

    def __init__(
        self,
        loop: EngineLoop,
        limits: EngineLimits,
        grammars: Grammars,
    ) -> None:
        self._loop = loop
        self._grammars = grammars
        self._gate = AdmissionGate(limits.max_open)
        self.limits = limits

    def _ready_gate(self) -> AdmissionGate:
        return self._gate

    def _queue(self, requests: Sequence[Request], sink: EventSink) -> None:
        queue_requests(self._loop, self._grammars, requests, sink)

    def cancel(self, request_id: str) -> None:
        self._loop.post(lambda core: core.cancel(request_id))

    def stats(self) -> dict[str, int | float | str]:
        return self._loop.call(lambda core: core.stats())

    def snapshot(self) -> EngineSnapshot:
        return self._loop.call(lambda core: core.snapshot())

    def explain(self, request_id: str) -> tuple[RequestReport, ...]:
        return self._loop.call(lambda core: core.explain(request_id))

    def close(self) -> None:
        self._loop.close()


def queue_requests(
    loop: EngineLoop,
    grammars: Grammars,
    requests: Sequence[Request],
    sink: EventSink,
) -> None:
    """Compile the grammar of one request, and queue its choices on the engine's thread.

    The caller has checked the limits. Raises `ParameterError` for a grammar that cannot
    be compiled and `EngineClosedError`.
    """
    grammar = requests[0].grammar
    matchers: Sequence[Matcher | None] = [None] * len(requests)
    if grammar is not None:
        matchers = grammars.matchers(grammar, len(requests))

    def add(core: Core) -> None:
        for request, matcher in zip(requests, matchers, strict=True):
            _add(core, request, sink, matcher)

    loop.post(add)


def _add(
    core: Core,
    request: Request,
    sink: EventSink,
    matcher: Matcher | None,
) -> None:
    try:
        core.add(request, sink, matcher)
    except Exception as error:  # one bad request ends alone
        event = StreamEvent(
            "",
            (),
            FinishReason.ERROR,
            index=request.index,
            error=str(error),
            error_parameter=getattr(error, "parameter", None),
            error_kind=type(error).__name__,
        )
        sink(event)
