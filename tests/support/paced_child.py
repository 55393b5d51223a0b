"""Pretends to be an engine's process: a step every `1 / STEPS_PER_S` gives each open request one token.

The text of a token is the time at which it was sent, in nanoseconds of the monotonic clock, so that a reader on the same
machine can tell how long it took. A request for `IDLE` tokens gets none. Speaks the project's frames, loads no model.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time

from rvllm_local.clients.process import frames
from rvllm_local.engine.limits import EngineLimits
from rvllm_local.types import FinishReason, Request, StreamEvent

STEPS_PER_S = 20
IDLE = 7777


class Engine:
    """Open requests by id and choice, and how many tokens each has had."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._open: dict[tuple[str, int], tuple[Request, int]] = {}
        self._steps = 0

    def serve(self) -> None:
        threading.Thread(target=self._step_on, daemon=True).start()
        while (command := frames.receive_command(self._connection)) is not None:
            if isinstance(command, frames.Close):
                return
            with self._lock:
                self._take(command)

    def _take(self, command: frames.Command) -> None:
        if isinstance(command, frames.Start):
            for request in command.requests:
                self._open[(request.request_id, request.index)] = (request, 0)
        elif isinstance(command, frames.Cancel):
            gone = [key for key in self._open if key[0] == command.request_id]
            ended = [
                (key[0], StreamEvent("", (), FinishReason.CANCELLED, index=key[1]))
                for key in gone
            ]
            for key in gone:
                del self._open[key]
            frames.send(self._connection, frames.Events(tuple(ended)))
        elif isinstance(command, frames.Ask):
            stats: dict[str, int | float | str] = {"requests_running": len(self._open)}
            frames.send(self._connection, frames.Answer(command.call_id, stats=stats))

    def _step_on(self) -> None:
        due = time.monotonic()
        while True:
            due += 1 / STEPS_PER_S
            time.sleep(max(0.0, due - time.monotonic()))
            with self._lock:
                self._steps += 1
                events = tuple(self._step())
                frames.send(
                    self._connection,
                    frames.Beat(self._steps, has_work=bool(self._open)),
                )
                if events:
                    frames.send(self._connection, frames.Events(events))

    def _step(self) -> list[tuple[str, StreamEvent]]:
        events = []
        for key, (request, count) in list(self._open.items()):
            if request.params.max_tokens == IDLE:
                continue
            reason = (
                FinishReason.LENGTH if count + 1 >= request.params.max_tokens else None
            )
            events.append(
                (
                    key[0],
                    StreamEvent(f"{time.monotonic_ns()} ", (5,), reason, index=key[1]),
                )
            )
            self._open[key] = (request, count + 1)
            if reason is not None:
                del self._open[key]
        return events


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    frames.receive_command(connection)
    frames.send(
        connection, frames.Ready(EngineLimits(384, 100_000, 10**9, (0,), 10_000))
    )
    Engine(connection).serve()
    os._exit(0)


if __name__ == "__main__":
    main()
