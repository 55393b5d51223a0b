"""The client whose engine is a server's, reached over HTTP: `/v1/engine/generate` and its neighbours.

Token ids go there and events come back, so that whoever uses it tokenizes itself. One thread reads each open request.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Sequence
from typing import Any

import httpx
import msgspec

from rvllm_local import errors
from rvllm_local.clients import http_messages
from rvllm_local.clients.admission import AdmissionGate
from rvllm_local.clients.contract import make_requests, open_stream
from rvllm_local.clients.stream import TokenStream
from rvllm_local.errors import (
    EngineClosedError,
    EngineCrashedError,
    EngineError,
    RvllmError,
)
from rvllm_local.sse import DONE, EventSizeError, SseReader
from rvllm_local.types import (
    EngineSnapshot,
    EventSink,
    FinishReason,
    Request,
    RequestReport,
    SamplingParams,
    StreamEvent,
)

DEFAULT_ADDRESS = "http://127.0.0.1:8473"
_CONNECT_S, _SILENCE_S, _LOAD_S = (
    5.0,
    60.0,
    900.0,
)  # a stream that lives breaks its silence every ten seconds
_BROKEN_STREAM = (
    httpx.HTTPError,
    httpx.StreamError,
    OSError,
    msgspec.DecodeError,
    EventSizeError,
)
# What the server's error codes mean in the contract's terms.
_BY_CODE: dict[str, type[RvllmError]] = {
    "queue_full": errors.QueueFullError,
    "context_length_exceeded": errors.ContextOverflowError,
    "model_not_found": errors.ModelNotFoundError,
    "memory_budget": errors.MemoryBudgetError,
    "model_unusable": errors.UnsupportedModelError,
    "engine_restarting": EngineCrashedError,
    "shutting_down": EngineClosedError,
}


class HttpClient:
    """The client contract over a server at `address`, for one of its models, which is loaded if need be.

    `api_key` is what a server with keys asks for; None takes RVLLM_API_KEY from the environment. `close` ends the requests
    of this client; the engine is the server's. Raises `EngineCrashedError` where no server answers, and what loading
    the model raised there.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        model: str = "default",
        *,
        api_key: str | None = None,
    ) -> None:
        key = (
            os.environ.get("RVLLM_API_KEY", "").split()[:1]
            if api_key is None
            else [api_key]
        )
        self._address = address
        self._http = httpx.Client(
            base_url=address,
            headers={"authorization": f"Bearer {key[0]}"} if key else {},
            timeout=httpx.Timeout(_SILENCE_S, connect=_CONNECT_S, pool=None),
            limits=httpx.Limits(max_connections=None),
            trust_env=False,  # what is on this machine is not reached through a proxy
        )
        self._lock = threading.Lock()
        self._open: dict[str, _Reader] = {}
        self._is_closed = False
        loaded = self._load(model)
        self.model, self.limits = loaded.model, loaded.limits
        self._gate = AdmissionGate(self.limits.max_open)

    def start(self, requests: Sequence[Request], sink: EventSink) -> None:
        """Queue the choices of one request; see `client.Client.start`."""
        self.limits.check(requests[0])
        request_id = requests[0].request_id
        counted = self._gate.admit(len(requests), sink, lambda: self.cancel(request_id))
        try:
            model = (
                requests[0].adapter or self.model
            )  # a server's adapters are asked for as models
            body = msgspec.json.encode(http_messages.encode(requests, model))
            response = self._send("POST", http_messages.GENERATE, body, stream=True)
            reader = _Reader(response, request_id, len(requests), counted, self._forget)
            with self._lock:
                if self._is_closed:
                    response.close()
                    raise EngineClosedError("the engine is closed")
                self._open[request_id] = reader
        except BaseException:
            self._gate.release(len(requests))
            raise
        reader.start()

    def submit(
        self, prompt_token_ids: Sequence[int], params: SamplingParams
    ) -> TokenStream:
        return open_stream(self, make_requests(prompt_token_ids, params))

    def cancel(self, request_id: str) -> None:
        """Ask the server to end a request of this client."""
        with self._lock:
            is_open = request_id in self._open
        if is_open:
            with contextlib.suppress(EngineError):  # it has ended, or the server has
                self._send("DELETE", f"{http_messages.REQUESTS}/{request_id}")

    def stats(self) -> dict[str, int | float | str]:
        return dict(self.snapshot().stats)

    def snapshot(self) -> EngineSnapshot:
        row = self._row()
        if row is None:  # unloaded, since nobody asked it for anything
            self._load(self.model)
            row = self._row() or {"error": "the model is not loaded; try again"}
        if "error" in row:
            raise EngineError(row["error"])
        return msgspec.convert(row, EngineSnapshot)

    def explain(self, request_id: str) -> tuple[RequestReport, ...]:
        try:
            answer = self._send("GET", f"/v1/engine/explain/{request_id}").json()
        except _NotFoundError:
            return ()
        return msgspec.convert(answer["choices"], tuple[RequestReport, ...])

    def close(self) -> None:
        """End the requests of this client. Safe to call twice."""
        with self._lock:
            self._is_closed = True
            readers = list(self._open.values())
        for reader in readers:
            reader.stop(EngineClosedError("the engine was closed"))
        self._http.close()

    def _load(self, model: str) -> http_messages.Loaded:
        body = msgspec.json.encode(http_messages.LoadRequest(model=model))
        answer = self._send(
            "POST",
            http_messages.LOAD,
            body,
            timeout=httpx.Timeout(_LOAD_S, connect=_CONNECT_S),
        )
        return msgspec.json.decode(answer.content, type=http_messages.Loaded)

    def _row(self) -> dict[str, Any] | None:
        rows = self._send("GET", "/v1/engine").json()["engines"]
        return next((row for row in rows if row["model"] == self.model), None)

    def _forget(self, request_id: str) -> None:
        with self._lock:
            self._open.pop(request_id, None)

    def _send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        stream: bool = False,
        **options: Any,
    ) -> httpx.Response:
        """An answer that is no error. Raises what the server said, or `EngineCrashedError` if it said nothing."""
        if self._is_closed:
            raise EngineClosedError("the engine is closed")
        headers = {} if body is None else {"content-type": "application/json"}
        request = self._http.build_request(
            method, path, content=body, headers=headers, **options
        )
        try:
            response = self._http.send(request, stream=stream)
            if response.is_success:
                return response
            response.read()
        except (
            httpx.TransportError,
            RuntimeError,
        ) as error:  # RuntimeError: it was closed meanwhile
            raise EngineCrashedError(
                f"the server at {self._address} does not answer ({type(error).__name__}); is rvllm serve running?"
            ) from None
        raise _error(response)


class _NotFoundError(EngineError):
    """What was asked for is not there."""


class _Reader(threading.Thread):
    """Reads one request's stream to its end, and gives each choice its last event, whatever happens."""

    def __init__(
        self,
        response: httpx.Response,
        request_id: str,
        num_choices: int,
        sink: EventSink,
        forget: Any,
    ) -> None:
        super().__init__(name="rvllm-http", daemon=True)
        self._response, self._request_id, self._sink, self._forget = (
            response,
            request_id,
            sink,
            forget,
        )
        self._waiting = set(range(num_choices))
        self._end: RvllmError = EngineCrashedError(
            "the server's stream ended while the request was open"
        )

    def run(self) -> None:
        try:
            with contextlib.closing(self._response):
                self._read_events()
        except _BROKEN_STREAM:
            pass  # the end is told below
        self._forget(self._request_id)
        for index in sorted(self._waiting):
            kind = type(self._end).__name__
            self._sink(
                StreamEvent(
                    "",
                    (),
                    FinishReason.ERROR,
                    index=index,
                    error=str(self._end),
                    error_kind=kind,
                )
            )

    def _read_events(self) -> None:
        reader = SseReader()
        for piece in self._response.iter_bytes():
            for data in reader.feed(piece):
                if data != DONE:
                    self._take(msgspec.json.decode(data, type=http_messages.Events))

    def stop(self, reason: RvllmError) -> None:
        """End the stream from another thread."""
        self._end = reason
        with contextlib.suppress(OSError, AttributeError):
            stream = self._response.extensions["network_stream"]
            stream.get_extra_info("socket").shutdown(
                socket.SHUT_RDWR
            )  # closing alone does not wake who reads
        if self is not threading.current_thread():
            self.join(5)

    def _take(self, message: http_messages.Events) -> None:
        if message.error is not None:
            self._end = _told(message.error, 1.0)
        for event in message.events:
            if event.finish_reason is not None:
                self._waiting.discard(event.index)
                if not self._waiting:
                    self._forget(self._request_id)
            self._sink(event)


def _error(response: httpx.Response) -> RvllmError:
    """A refusal in the contract's terms."""
    try:
        told = response.json()["error"]
        message = str(told["message"])
    except (ValueError, KeyError, TypeError):
        return EngineError(
            f"the server answered {response.status_code} without a word; is it rvllm serve?"
        )
    if response.status_code == 404 and told.get("code") == "not_found":
        return _NotFoundError(message)
    if response.status_code == 400 and told.get("code") is None:
        return errors.ParameterError(told.get("param") or "", message)
    return _told(told, float(response.headers.get("retry-after", "1")))


def _told(told: dict[str, Any], retry_after_s: float) -> RvllmError:
    kind, message = (
        _BY_CODE.get(told.get("code") or "", EngineError),
        str(told.get("message")),
    )
    if kind is errors.QueueFullError:
        return errors.QueueFullError(message, retry_after_s)
    if issubclass(kind, errors.ParameterError):
        return kind(told.get("param") or "", message)
    return kind(message)
