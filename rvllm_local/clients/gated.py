"""The base of the clients that count open choices before an engine gets them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from rvllm_local.clients.admission import AdmissionGate
from rvllm_local.clients.contract import Client
from rvllm_local.types import EventSink, Request


class GatedClient(Client):
    """Checks a request and counts its choices in; then `_queue` hands them on."""

    @abstractmethod
    def _ready_gate(self) -> AdmissionGate:
        """The gate of an engine that serves.

        Raises `EngineCrashedError` or `EngineClosedError` if there is none.
        """

    @abstractmethod
    def _queue(self, requests: Sequence[Request], sink: EventSink) -> None:
        """Hand the choices of one request to the engine."""

    def start(self, requests: Sequence[Request], sink: EventSink) -> None:
        """Queue the choices of one request; see `Client.start`."""
        gate = self._ready_gate()
        first = requests[0]
        # Choices differ in nothing that is checked; texts that are read do.
        for request in requests if first.is_read else (first,):
            self.limits.check(request)
        counted = gate.admit(len(requests), sink, lambda: self.cancel(first.request_id))
        try:
            self._queue(requests, counted)
        except BaseException:
            gate.release(len(requests))
            raise
