"""A scripted OpenAI-style server on loopback, in a thread.

It answers, stalls, cuts, lies and sends hostile text.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CLOSING_S = 120.0  # the other side has this long to close its connections

ENGINE = {
    "blocks": {
        "total": 32,
        "free": 20,
        "used": 6,
        "shared": 2,
        "cached": 4,
        "spilled": 3,
    },
    "block_map": "u" * 6 + "s" * 2 + "c" * 4 + "f" * 20,
    "requests": [],
    "stats": {
        "prefix_hit_tokens": 1200,
        "preemptions": 1,
        "attention_backend": "kernels",
    },
    "memory": {
        "weights": 4_400_000_000,
        "kv_arena": 2_000_000_000,
        "budget": 36_000_000_000,
    },
}


class _Server(ThreadingHTTPServer):
    """Knows which connections are open."""

    daemon_threads = True

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self._open: set[Any] = set()
        self._changed = threading.Condition()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changed:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self._changed:
            self._open.discard(request)
            self._changed.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is no news."""

    def all_closed(self, timeout: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._open, timeout)


class FakeEndpoint:
    """`script` maps the last user message to what is done.

    It is a list of steps, each a delta's text, a dict that is sent as it is, bytes that
    are sent raw, or one of the words below. `requests` are the bodies that came.
    "hold" waits for `release`; "cut" closes the connection; ("status", n, body)
    refuses. At its end every connection must have been closed by the other side: one
    that was left open would fail some later test, when it is collected.
    """

    def __init__(
        self,
        script: dict[str, list[Any]] | None = None,
        default: list[Any] | None = None,
    ) -> None:
        self.script = script or {}
        self.default = default or ["Hello ", "there."]
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.release = threading.Event()
        self.holding = threading.Event()
        self.disconnected = threading.Event()
        self.engine: dict[str, Any] = json.loads(json.dumps(ENGINE))
        self.models = [
            {"id": "small", "context_length": 32768},
            {"id": "large", "max_model_len": 131072},
        ]
        handler = type("Handler", (_Handler,), {"fake": self})
        self._server = _Server(handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.05},
            daemon=True,
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FakeEndpoint:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        if kind is None:
            assert self._server.all_closed(CLOSING_S), "a connection was left open"

    def steps(self, body: dict[str, Any]) -> list[Any]:
        return self.script.get(body["messages"][-1]["content"], self.default)


class _Handler(BaseHTTPRequestHandler):
    """Handles a connection to `fake`."""

    fake: FakeEndpoint
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        pages = {
            "/health": {"status": "ok"},
            "/v1/models": {"data": self.fake.models},
            "/v1/engine": self.fake.engine,
        }
        self._reply(200 if self.path in pages else 404, pages.get(self.path, {}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.fake.requests.append(body)
        self.fake.headers.append(dict(self.headers))
        steps = self.fake.steps(body)
        if steps and isinstance(steps[0], tuple):
            self._reply(steps[0][1], steps[0][2])
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            self._stream(steps)
        except OSError:
            self.fake.disconnected.set()

    def _stream(self, steps: list[Any]) -> None:
        for step in steps:
            if step == "cut":
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if step == "hold":
                self.fake.holding.set()
                while not self.fake.release.wait(0.1):
                    self.wfile.write(b": keepalive\n\n")
            else:
                self.wfile.write(_event(step))
        for event in _ending(len(steps)):
            self.wfile.write(event)

    def _reply(self, status: int, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _event(step: Any) -> bytes:
    if isinstance(step, bytes):
        return step
    value = step if isinstance(step, dict) else {"content": step}
    if not {"error", "choices"} & set(value):
        value = {"choices": [{"delta": value, "finish_reason": None}]}
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _ending(count: int) -> Iterator[bytes]:
    yield _event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    usage = {
        "prompt_tokens": 12,
        "completion_tokens": count,
        "prompt_tokens_details": {"cached_tokens": 8},
    }
    yield _event({"choices": [], "usage": usage})
    yield b"data: [DONE]\n\n"
