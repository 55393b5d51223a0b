"""An endpoint that answers every request with the same scripted bytes, well or badly."""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
)
DONE = b"data: [DONE]\n\n"
# Sent; slept; "hang" waits for the end of the test; called.
Step = bytes | float | str | Callable[[], object]


def chunk(content: str | None = None, finish: str | None = None, **more: Any) -> bytes:
    """One event of a chat completion."""
    delta = {} if content is None else {"content": content}
    value = {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def usage(prompt: Any = 20, completion: Any = 4, cached: Any = 0) -> bytes:
    """The last event, with the counts."""
    details = {"prompt_tokens_details": {"cached_tokens": cached}}
    value = {
        "choices": [],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, **details},
    }
    return b"data: " + json.dumps(value).encode() + b"\n\n"


WORDS = [chunk(word) for word in ("The ", "sea ", "is ", "salty.")]
GOOD: list[Step] = [HEAD, chunk(""), *WORDS, chunk(finish="length"), usage(), DONE]


class Scripted:
    """A server on `url` that plays `steps` to everyone.

    `bodies` are the requests that came, `num_left` counts clients that have closed
    their connection, and `has_played` is true once somebody got all steps.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = steps
        self.bodies: list[dict[str, Any]] = []
        self.num_left = 0
        self.num_answered_at_once = 1_000_000  # those who come later are held
        self.has_played = False
        self.release = threading.Event()
        scripted = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                length = 0
                while (line := self.rfile.readline().strip()) != b"":
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                scripted.bodies.append(json.loads(self.rfile.read(length) or b"{}"))
                if len(scripted.bodies) > scripted.num_answered_at_once:
                    scripted.release.wait(60)
                for step in scripted.steps:
                    if isinstance(step, bytes):
                        self.wfile.write(step)
                    elif isinstance(step, str):
                        scripted.release.wait(60)
                    elif callable(step):
                        step()
                    else:
                        time.sleep(step)
                scripted.has_played = True
                with contextlib.suppress(OSError):
                    self.connection.shutdown(socket.SHUT_WR)
                    self.rfile.read()
                scripted.num_left += 1

        socketserver.ThreadingTCPServer.daemon_threads = True
        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.01},
            daemon=True,
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Scripted:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
