"""The engine's process: `python -m rvllm_local.clients.process.child FD PARENT`.

Loads a model, runs its engine, speaks in frames. Exits when its parent does. Prints no
prompt; what it writes to stderr is the parent's to keep.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import gc
import importlib
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rvllm_local import host
from rvllm_local.clients.process import frames
from rvllm_local.errors import EngineClosedError, RvllmError
from rvllm_local.framing import FrameError
from rvllm_local.types import EventSink, FinishReason, Request, StreamEvent

if TYPE_CHECKING:
    from rvllm_local.distributed.leading_core import LeadingJob
    from rvllm_local.engine.core_contract import Core
    from rvllm_local.engine.loop import EngineLoop
    from rvllm_local.models.locate import ModelFiles
    from rvllm_local.options import EngineOptions
    from rvllm_local.text.tokenizer import Tokenizer

_BEAT_S = 0.5
_MOST_EVENTS = 256  # in one frame
_OUTBOX = 4096
_EXIT_PROTOCOL, _EXIT_INTERNAL = 65, 70
# What is imported late elsewhere, but by every engine's start.
_AHEAD = (
    "rvllm_local.engine.startup.open",
    "rvllm_local.text.tokenizer_files",
    "rvllm_local.clients.in_process",
    "rvllm_local.text.grammar.compiled",
    "rvllm_local.text.template",
    "platformdirs",
)
_AHEAD_ON_CPU = ("numpy.random", "onnxruntime")


def main() -> int:
    """Serve one parent over the socket whose descriptor is the first argument.

    The second is the parent's id.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    host.end_with_parent(int(sys.argv[2]))
    faulthandler.enable()
    threading.excepthook = _fatal
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(
        False
    )  # a compiler that MLX starts must not keep it open when this process is gone
    host.prepare()
    _import_ahead()
    command = frames.receive_command(connection)
    if not isinstance(command, frames.Load):
        return 1
    server = _Server(connection)
    threading.Thread(target=server.watch_parent_while_loading, daemon=True).start()
    try:
        server.load(command)
    except Exception as error:
        server.fail(error)
        return 0
    try:
        server.serve()
    except FrameError as error:
        _say(f"rvllm engine: {error}")
        os._exit(_EXIT_PROTOCOL)
    except (BrokenPipeError, ConnectionError):
        os._exit(0)  # the parent has gone: nobody is left to tidy up for
    return 0


def _let_streams_pass() -> None:
    """Compute after the engines of models that write, and not beside them.

    Where a GPU may be it computes: a thread that has to wait would let it wait as well.
    """
    if host.may_have_gpu():
        host.step_back()
    else:
        host.run_last()


def _import_ahead() -> None:
    """Import what any engine takes, before there is a word of which one it shall be.

    It may be told long after its start. No memory is taken for a model.
    """
    for module in _AHEAD:
        importlib.import_module(module)
    if not host.may_have_gpu():
        for module in _AHEAD_ON_CPU:
            with contextlib.suppress(ImportError):  # whoever needs it will be told
                importlib.import_module(module)


class _Server:
    """One engine and the connection that it serves."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        # Bounded: a parent that does not read slows the engine down, and does not fill
        # its memory.
        self._outbox: queue.Queue[tuple[str, StreamEvent] | frames.Event | None] = (
            queue.Queue(_OUTBOX)
        )
        self._loaded = threading.Event()
        self._loop: EngineLoop
        self._job: LeadingJob | None = None  # of several ranks
        self._queue: Callable[[Sequence[Request], EventSink], None]
        self._lock = threading.Lock()
        self._compiling: dict[
            str, bool
        ] = {}  # requests whose grammar is being compiled: are they cancelled?
        self._sender = threading.Thread(
            target=self._send_all, name="rvllm-sender", daemon=True
        )
        self._sender.start()

    def watch_parent_while_loading(self) -> None:
        """Loading reads no frames.

        End with the parent, or when it closes, all the same.
        """
        while not self._loaded.wait(0.2):
            with contextlib.suppress(OSError):
                # Before the engine is ready a parent has nothing to say but that it
                # closes.
                self._connection.recv(1, socket.MSG_PEEK)
                if not self._loaded.is_set():
                    os._exit(0)

    def load(self, command: frames.Load) -> None:
        """Build the engine and say so."""
        from rvllm_local.clients.in_process import queue_requests
        from rvllm_local.engine.loop import EngineLoop
        from rvllm_local.models.encoders.setup import pooled_setup
        from rvllm_local.models.locate import locate
        from rvllm_local.text.grammar.compiled import Grammars
        from rvllm_local.text.tokenizer_files import read_tokenizer

        cache_dir = command.options.cache_dir
        files = locate(
            command.model,
            self._say_loading,
            cache_dir=None if cache_dir is None else Path(cache_dir),
        )
        if pooled_setup(files) is not None:
            _let_streams_pass()
        tokenizer = read_tokenizer(files)
        build = self._opener(files, tokenizer, command.options)
        self._loop = EngineLoop(build, quiet_gc=True)
        limits = self._loop.call(lambda core: core.limits)
        grammars = Grammars(tokenizer, limits.vocab_size, limits.eos_token_ids)
        self._queue = functools.partial(queue_requests, self._loop, grammars)
        gc.collect()
        gc.freeze()  # what a model is made of is never garbage
        gc.disable()  # the loop collects when it is idle
        self._loaded.set()
        self._outbox.put(frames.Ready(limits))

    def _opener(
        self, files: ModelFiles, text: Tokenizer, options: EngineOptions
    ) -> Callable[[], Core]:
        """What builds the core, on the engine's thread."""
        if options.ranks == 1:
            from rvllm_local.engine.startup.open import open_any_core

            return lambda: open_any_core(files, text, options)
        from rvllm_local.distributed.leading_core import LeadingJob

        # Here: the other ranks end with the thread that has started them.
        job = LeadingJob(files, options, _say)
        self._job = job
        return lambda: job.open_core(text)

    def _say_loading(self, message: str) -> None:
        self._outbox.put(frames.Loading(message))

    def fail(self, error: Exception) -> None:
        """Say why the engine could not be built.

        No prompt is known yet, so that any error's text may be told.
        """
        if not isinstance(error, RvllmError | MemoryError):
            _print_frames(error)
        self._outbox.put(_failed(error, with_text=True))
        self._finish()

    def _finish(self) -> None:
        self._outbox.put(None)
        self._sender.join(5)

    def serve(self) -> None:
        """Take commands until the parent closes or goes."""
        while True:
            command = frames.receive_command(self._connection)
            if command is None:
                os._exit(0)
            if isinstance(command, frames.Close):
                break
            self._take(command)
        self._loop.close()
        if self._job is not None:
            self._job.close()
        self._finish()

    def _take(self, command: frames.Command) -> None:
        if (
            isinstance(command, frames.Start)
            and command.requests[0].grammar is not None
        ):
            # Compiling takes up to two seconds: other frames must not wait for it.
            self._compiling[command.requests[0].request_id] = False
            threading.Thread(
                target=self._compile_and_start, args=(command.requests,), daemon=True
            ).start()
        elif isinstance(command, frames.Start):
            self._start(command.requests)
        elif isinstance(command, frames.Cancel):
            with self._lock:
                if command.request_id in self._compiling:
                    self._compiling[command.request_id] = True
            self._loop.post(lambda core: core.cancel(command.request_id))
        elif isinstance(command, frames.Ask):
            self._loop.post(lambda core: self._outbox.put(_answer(core, command)))
        else:
            raise FrameError(f"{type(command).__name__} came twice")

    def _compile_and_start(self, requests: tuple[Request, ...]) -> None:
        request_id = requests[0].request_id
        if self._start(requests):  # tell the caller that the grammar can be enforced
            self._outbox.put((request_id, StreamEvent("", index=requests[0].index)))
        with self._lock:
            is_cancelled = self._compiling.pop(request_id)
        if is_cancelled:  # before there was anything to cancel
            with contextlib.suppress(EngineClosedError):
                self._loop.post(lambda core: core.cancel(request_id))

    def _start(self, requests: tuple[Request, ...]) -> bool:
        request_id = requests[0].request_id

        def sink(event: StreamEvent) -> None:
            self._outbox.put((request_id, event))

        try:  # the parent has checked the limits and counted the choices in
            self._queue(requests, sink)
        except Exception as error:  # one bad request ends alone
            for request in requests:
                sink(_failed_event(request.index, _failed(error)))
            return False
        return True

    def _send_all(self) -> None:
        """The sender's thread: events that wait together go in one frame.

        Silence is broken by a beat.
        """
        beaten = 0.0
        try:
            while True:
                if time.monotonic() - beaten >= _BEAT_S:
                    frames.send(self._connection, self._beat())
                    beaten = time.monotonic()
                try:
                    item = self._outbox.get(timeout=_BEAT_S)
                except queue.Empty:
                    continue
                if item is None:
                    return
                self._send_with_followers(item)
        except OSError:
            os._exit(0)

    def _send_with_followers(
        self, item: tuple[str, StreamEvent] | frames.Event
    ) -> None:
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
        if following is not None:
            frames.send(self._connection, following)

    def _beat(self) -> frames.Beat:
        return (
            frames.Beat(*self._loop.progress)
            if self._loaded.is_set()
            else frames.Beat(0, has_work=False)
        )


def _answer(core: Core, ask: frames.Ask) -> frames.Answer:
    try:
        if ask.what == "stats":
            return frames.Answer(ask.call_id, stats=core.stats())
        if ask.what == "snapshot":
            return frames.Answer(ask.call_id, snapshot=core.snapshot())
        return frames.Answer(ask.call_id, reports=core.explain(ask.argument))
    except Exception as error:
        return frames.Answer(ask.call_id, error=_failed(error))


def _failed(error: Exception, *, with_text: bool = False) -> frames.Failed:
    """An error as a frame.

    The text of one that is not the project's own can quote a prompt.
    """
    kind = type(error).__name__
    if isinstance(error, RvllmError):
        return frames.Failed(kind, str(error), getattr(error, "parameter", None))
    if isinstance(error, MemoryError):
        return frames.Failed(
            "MemoryBudgetError",
            f"memory ran out: {error}" if with_text else "memory ran out",
        )
    return frames.Failed(
        "EngineError",
        f"the engine failed with {kind}" + (f": {error}" if with_text else ""),
    )


def _failed_event(index: int, failed: frames.Failed) -> StreamEvent:
    return StreamEvent(
        "",
        (),
        FinishReason.ERROR,
        index=index,
        error=failed.message,
        error_parameter=failed.parameter,
        error_kind=failed.kind,
    )


def _print_frames(error: BaseException | None) -> None:
    """Like a traceback, without the text of the error."""
    if error is not None:
        _say("".join(traceback.format_tb(error.__traceback__)) + type(error).__name__)


def _say(message: str) -> None:
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def _fatal(report: threading.ExceptHookArgs) -> None:
    """A thread without which the process is of no use has died: let the parent start another."""
    _print_frames(report.exc_value)
    os._exit(_EXIT_INTERNAL)


if __name__ == "__main__":
    sys.exit(main())
