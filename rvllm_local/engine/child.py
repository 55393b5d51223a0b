"""The engine's process: `python -m rvllm_local.engine.child FD`. Loads a model, runs its engine, speaks in frames.

Exits when its parent does. Prints no prompt; what it writes to stderr is the parent's to keep.
"""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING

from rvllm_local import host
from rvllm_local.engine import frames
from rvllm_local.errors import RvllmError
from rvllm_local.types import FinishReason, Request, StreamEvent

if TYPE_CHECKING:
    from rvllm_local.engine.core import EngineCore

_BEAT_S = 0.5
_MOST_EVENTS = 256  # in one frame


def main() -> int:
    """Serve one parent over the socket whose descriptor is the only argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    connection = socket.socket(fileno=int(sys.argv[1]))
    host.prepare()
    command = frames.receive_command(connection)
    if not isinstance(command, frames.Load):
        return 1
    server = _Server(connection)
    threading.Thread(target=server.watch_parent_while_loading, daemon=True).start()
    try:
        server.load(command)
    except RvllmError as error:
        frames.send(connection, frames.Failed(type(error).__name__, str(error), getattr(error, "parameter", None)))
        return 0
    except MemoryError as error:
        frames.send(connection, frames.Failed("MemoryBudgetError", f"memory ran out while loading: {error}"))
        return 0
    try:
        server.serve()
    except frames.FrameError as error:
        sys.stderr.write(f"rvllm engine: {error}\n")
        sys.stderr.flush()
        os._exit(1)
    except (BrokenPipeError, ConnectionError):
        os._exit(0)  # the parent has gone: nobody is left to tidy up for
    return 0


class _Server:
    """One engine and the connection that it serves."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._outbox: queue.SimpleQueue[tuple[str, StreamEvent] | frames.Event | None] = queue.SimpleQueue()
        self._loaded = threading.Event()

    def watch_parent_while_loading(self) -> None:
        """Loading reads no frames; end with the parent all the same."""
        while not self._loaded.wait(0.5):
            with contextlib.suppress(OSError):
                if self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b"":
                    os._exit(0)

    def load(self, command: frames.Load) -> None:
        """Build the engine and say so."""
        from rvllm_local.engine.build import open_core
        from rvllm_local.engine.loop import EngineLoop
        from rvllm_local.local_client import InProcessClient
        from rvllm_local.models.loader import locate
        from rvllm_local.text.grammars import Grammars
        from rvllm_local.text.tokenizer import Tokenizer

        def progress(message: str) -> None:
            frames.send(self._connection, frames.Loading(message))

        files = locate(command.model, progress)
        tokenizer = Tokenizer.from_files(files)
        self._loop = EngineLoop(lambda: open_core(files, tokenizer, command.options), quiet_gc=True)
        limits = self._loop.call(lambda core: core.limits)
        self._client = InProcessClient(self._loop, limits, Grammars(tokenizer, limits.vocab_size, limits.eos_token_ids))
        gc.collect()
        gc.freeze()  # what a model is made of is never garbage
        gc.disable()  # the loop collects when it is idle
        frames.send(self._connection, frames.Ready(limits))
        self._loaded.set()

    def serve(self) -> None:
        """Take commands until the parent closes or goes."""
        sender = threading.Thread(target=self._send_all, name="rvllm-sender", daemon=True)
        sender.start()
        while True:
            command = frames.receive_command(self._connection)
            if command is None:
                os._exit(0)
            if isinstance(command, frames.Close):
                break
            self._take(command)
        self._loop.close()
        self._outbox.put(None)
        sender.join(5)

    def _take(self, command: frames.Command) -> None:
        if isinstance(command, frames.Start) and command.requests[0].grammar is not None:
            # Compiling takes up to two seconds: other frames must not wait for it.
            threading.Thread(target=self._start, args=(command.requests,), daemon=True).start()
        elif isinstance(command, frames.Start):
            self._start(command.requests)
        elif isinstance(command, frames.Cancel):
            self._loop.post(lambda core: core.cancel(command.request_id))
        elif isinstance(command, frames.Ask):
            self._loop.post(lambda core: self._outbox.put(_answer(core, command)))
        else:
            raise frames.FrameError(f"{type(command).__name__} came twice")

    def _start(self, requests: tuple[Request, ...]) -> None:
        request_id = requests[0].request_id

        def sink(event: StreamEvent) -> None:
            self._outbox.put((request_id, event))

        try:
            self._client.start(requests, sink)
        except RvllmError as error:  # one bad request ends alone
            for request in requests:
                sink(StreamEvent("", (), FinishReason.ERROR, index=request.index, error=str(error)))

    def _send_all(self) -> None:
        """The sender's thread: events that wait together go in one frame; silence is broken by a beat."""
        try:
            while True:
                try:
                    item = self._outbox.get(timeout=_BEAT_S)
                except queue.Empty:
                    frames.send(self._connection, self._beat())
                    continue
                if item is None:
                    return
                self._send_with_followers(item)
        except OSError:
            os._exit(0)

    def _send_with_followers(self, item: tuple[str, StreamEvent] | frames.Event) -> None:
        events: list[tuple[str, StreamEvent]] = []
        following: tuple[str, StreamEvent] | frames.Event | None = item
        while isinstance(following, tuple):
            events.append(following)
            if len(events) == _MOST_EVENTS:
                following = None
                break
            try:
                following = self._outbox.get_nowait()
            except queue.Empty:
                following = None
                break
            if following is None:  # the end: leave it for the thread's loop
                self._outbox.put(None)
        if events:
            frames.send(self._connection, frames.Events(tuple(events)))
            frames.send(self._connection, self._beat())
        if following is not None:
            frames.send(self._connection, following)

    def _beat(self) -> frames.Beat:
        return frames.Beat(*self._loop.progress)


def _answer(core: EngineCore, ask: frames.Ask) -> frames.Answer:
    if ask.what == "stats":
        return frames.Answer(ask.call_id, stats=core.stats())
    if ask.what == "snapshot":
        return frames.Answer(ask.call_id, snapshot=core.snapshot())
    return frames.Answer(ask.call_id, reports=core.explain(ask.argument))


if __name__ == "__main__":
    sys.exit(main())
