"""The client whose engine is a server's, reached over HTTP: `/v1/engine/generate` and its neighbours.

Token ids go there and events come back, so that whoever uses it tokenizes itself. One
thread reads each open request.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import msgspec

from rvllm_local import errors
from rvllm_local.clients import http_messages
from rvllm_local.clients.admission import AdmissionGate
from rvllm_local.clients.gated import GatedClient
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
    StreamEvent,
)

DEFAULT_ADDRESS = "http://127.0.0.1:8473"
_CONNECT_S = 5.0
_SILENCE_S = 60.0  # a stream that lives breaks its silence every ten seconds
_LOAD_S = 900.0
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


class HttpClient(GatedClient):
    """The client contract over a server at `address`, for one of its models.

    The model is loaded if need be. A server with keys asks for `api_key`; None takes
    RVLLM_API_KEY from the environment. `close` ends the requests of this client; the
    engine is the server's. Raises `EngineCrashedError` where no server answers, and
    what loading the model raised there.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        model: str = "default",
        *,
        api_key: str | None = None,
    ) -> None:
        headers = {}
        if api_key is not None:
            headers["authorization"] = f"Bearer {api_key}"
        else:
            keys = os.environ.get("RVLLM_API_KEY", "").split()
            if keys:
                headers["authorization"] = f"Bearer {keys[0]}"
        self._address = address
        self._http = httpx.Client(
            base_url=address,
            headers=headers,
            timeout=httpx.Timeout(_SILENCE_S, connect=_CONNECT_S, pool=None),
            limits=httpx.Limits(max_connections=None),
            trust_env=False,  # what is on this machine is not reached through a proxy
            # Certificates take 50 ms to be read. Plain HTTP shows none.
            verify=not address.startswith("http://"),
        )
        self._lock = threading.Lock()
        self._open: dict[str, _Reader] = {}
        self._is_closed = False
        loaded = self._load(model)
        self.model = loaded.model
        self.limits = loaded.limits
        self._gate = AdmissionGate(self.limits.max_open)

    def _ready_gate(self) -> AdmissionGate:
        return self._gate

    def _queue(self, requests: Sequence[Request], sink: EventSink) -> None:
        first = requests[0]
        # A server's adapters are asked for as models.
        model = first.adapter or self.model
        message: msgspec.Struct
        if first.is_read:
            path = http_messages.READ
            message = http_messages.encode_read(requests, model)
        else:
            path = http_messages.GENERATE
            message = http_messages.encode(requests, model)
        body = msgspec.json.encode(message)
        response = self._send("POST", path, body, stream=True)
        reader = _Reader(response, requests, sink, self._forget)
        with self._lock:
            if self._is_closed:
                response.close()
                raise EngineClosedError("the engine is closed")
            self._open[first.request_id] = reader
        reader.start()

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
        """The server's view of this model; None if it is not loaded."""
        answer = self._send("GET", "/v1/engine").json()
        for row in answer["engines"]:
            if row["model"] == self.model:
                view: dict[str, Any] = row
                return view
        return None

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
        """An answer that is no error.

        Raises what the server said, or `EngineCrashedError` if it said nothing.
        """
        if self._is_closed:
            raise EngineClosedError("the engine is closed")
        headers = {}
        if body is not None:
            headers["content-type"] = "application/json"
        request = self._http.build_request(
            method,
            path,
            content=body,
            headers=headers,
            **options,
        )
        try:
            response = self._http.send(request, stream=stream)
            if response.is_success:
                return response
            response.read()
        # RuntimeError: the client was closed meanwhile.
        except (httpx.TransportError, RuntimeError) as error:
            raise EngineCrashedError(
                f"the server at {self._address} does not answer "
                f"({type(error).__name__}); is rvllm serve running?"
            ) from None
        raise _error(response)


class _NotFoundError(EngineError):
    """The server does not have what a path names."""


class _Reader(threading.Thread):
    """Reads one request's stream to its end.

    Gives each choice its last event, whatever happens.
    """

    def __init__(
        self,
        response: httpx.Response,
        requests: Sequence[Request],
        sink: EventSink,
        forget: Callable[[str], None],
    ) -> None:
        super().__init__(name="rvllm-http", daemon=True)
        self._response = response
        self._request_id = requests[0].request_id
        self._sink = sink
        self._forget = forget
        self._waiting = set(range(len(requests)))
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
            event = StreamEvent(
                "",
                (),
                FinishReason.ERROR,
                index=index,
                error=str(self._end),
                error_kind=type(self._end).__name__,
            )
            self._sink(event)

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
            connection = stream.get_extra_info("socket")
            # Closing alone does not wake who reads.
            connection.shutdown(socket.SHUT_RDWR)
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
    status = response.status_code
    try:
        fields = response.json()["error"]
        message = str(fields["message"])
    except (ValueError, KeyError, TypeError):
        return EngineError(
            f"the server answered {status} without a word; is it rvllm serve?"
        )
    code = fields.get("code")
    if status == 404 and code == "not_found":
        return _NotFoundError(message)
    if status == 400 and code is None:
        return errors.ParameterError(fields.get("param") or "", message)
    retry_after = response.headers.get("retry-after", "1")
    return _told(fields, float(retry_after))


def _told(fields: dict[str, Any], retry_after_s: float) -> RvllmError:
    """An error object of the server in the contract's terms."""
    kind = _BY_CODE.get(fields.get("code") or "", EngineError)
    message = str(fields.get("message"))
    if kind is errors.QueueFullError:
        return errors.QueueFullError(message, retry_after_s)
    if issubclass(kind, errors.ParameterError):
        return kind(fields.get("param") or "", message)
    return kind(message)
