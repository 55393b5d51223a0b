"""One engine process as its parent sees it: the connection, the open requests and questions, and the end of it all."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import queue
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from rvllm_local.child_start import ENGINE, Spare, take_or_start
from rvllm_local.clients.process import frames
from rvllm_local.clients.process.error_lines import ErrorLines
from rvllm_local.clients.process.watchdog import Watchdog
from rvllm_local.distributed.frames import RANK_LOST
from rvllm_local.engine.limits import EngineLimits
from rvllm_local.errors import (
    EngineCrashedError,
    EngineError,
    ParameterError,
    RvllmError,
)
from rvllm_local.framing import FrameError
from rvllm_local.types import EventSink, FinishReason, Request, StreamEvent

logger = logging.getLogger(__name__)

_LAST_LINES = 3  # of stderr, as the reason for an end
_ANSWER_TIMEOUT_S = 30.0
_EXIT_S, _KILL_S = 0.5, 3.0


class ChildProcess:
    """One process, its connection, and the requests and questions that are open with it."""

    def __init__(
        self,
        load: frames.Load,
        on_ready: Callable[[EngineLimits], None],
        on_end: Callable[[ChildProcess], None],
        progress: Callable[[str], None] | None,
        command: Sequence[str] = ENGINE,
        spare: Spare | None = None,
    ) -> None:
        started = take_or_start(spare, command, keeps_errors=True)
        self._process, self._connection = started
        self.pid = self._process.pid
        self._load = load
        self._on_ready = on_ready
        self._on_end = on_end
        self._progress = progress
        self._lock = threading.Lock()
        # By request id and choice; None once the child has gone.
        self._sinks: dict[tuple[str, int], EventSink] | None = {}
        self._answers: dict[int, Future[frames.Answer]] = {}
        self._call_ids = itertools.count()
        self._outbox: queue.SimpleQueue[frames.Command | None] = queue.SimpleQueue()
        assert self._process.stderr is not None
        self._errors = ErrorLines(self._process.stderr)
        self._gone: Exception = EngineCrashedError(
            "the engine's process ended while the request was open"
        )
        self._killed_for: str | None = None
        self.failure: RvllmError | None = None
        self.watchdog = Watchdog(self.pid)
        self.steps, self.has_work = 0, False

    def run(self) -> None:
        """Start the threads that serve the connection."""
        self._outbox.put(self._load)
        self._threads = [
            threading.Thread(target=target, name=f"rvllm-child-{name}", daemon=True)
            for name, target in (
                ("writer", self._write),
                ("stderr", self._errors.keep),
                ("reader", self._read),
            )
        ]
        for thread in self._threads:
            thread.start()

    def start(self, requests: tuple[Request, ...], sink: EventSink) -> bool:
        """Hand requests over; False if the child has gone."""
        with self._lock:
            if self._sinks is None:
                return False
            if any(
                (request.request_id, request.index) in self._sinks
                for request in requests
            ):
                raise ParameterError(
                    "request_id",
                    "a request with this id is already open; give it another id",
                )
            if not self._is_busy():
                self.watchdog.expect()
            for request in requests:
                self._sinks[(request.request_id, request.index)] = sink
        self.post(frames.Start(requests))
        return True

    def cancel(self, request_id: str) -> None:
        """End a request; one that is not open is left alone."""
        with self._lock:
            is_open = any(key[0] == request_id for key in self._sinks or ())
        if is_open:
            self.post(frames.Cancel(request_id))

    def ask(self, what: str, argument: str) -> frames.Answer:
        answer: Future[frames.Answer] = Future()
        call_id = next(self._call_ids)
        with self._lock:
            if self._sinks is None:
                raise self._gone
            if not self._is_busy():
                self.watchdog.expect()
            self._answers[call_id] = answer
        self.post(frames.Ask(call_id, what, argument))
        try:
            result = answer.result(_ANSWER_TIMEOUT_S)
        except TimeoutError as error:
            raise EngineError(
                f"the engine did not answer within {_ANSWER_TIMEOUT_S:.0f} s"
            ) from error
        finally:
            with self._lock:
                self._answers.pop(call_id, None)
        if result.error is not None:
            raise frames.error_in(result.error)
        return result

    def post(self, command: frames.Command) -> None:
        self._outbox.put(command)

    def kill(self, reason: str | None = None) -> None:
        """End the process and what it started, now.

        `reason` becomes what its requests are told.
        """
        if reason is not None:
            self._killed_for = reason
            self._gone = EngineCrashedError(
                f"the engine {reason} while the request was open; its process was ended"
            )
        if self._process.poll() is None:  # otherwise the number may be another's by now
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def stalled_for(self, limit_s: float, silence_s: float) -> str | None:
        """What is wrong with a child that hangs; see `Watchdog.stalled_for`."""
        with self._lock:
            if self._sinks is None:
                return None
            is_busy = self._is_busy()
        return self.watchdog.stalled_for(limit_s, silence_s, is_busy)

    def _is_busy(self) -> bool:
        """Something is expected of the child, whatever it says itself."""
        return bool(self._sinks or self._answers or self.has_work)

    def close(self, timeout_s: float, reason: Exception) -> None:
        """Ask it to end, kill it if it does not, and leave nothing behind."""
        self._gone = reason
        self.post(frames.Close())
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(5)

    def last_words(self) -> str:
        """Why the child ended: what it has said itself.

        Else its exit status, and the last lines that it wrote to stderr.
        """
        if self.failure is not None:
            return str(self.failure)
        code = self._process.poll()
        how = (
            "no exit status"
            if code is None
            else _signal_name(-code)
            if code < 0
            else f"exit status {code}"
        )
        how = f"it {self._killed_for}" if self._killed_for else how
        ranks = self._load.options.ranks
        if ranks > 1 and code != RANK_LOST:
            how = f"rank 0 of {ranks}: {how}"
        lines = self._errors.last(_LAST_LINES)
        return f"{how}: {' | '.join(lines)}" if lines else how

    def _write(self) -> None:
        while (command := self._outbox.get()) is not None:
            try:
                frames.send(self._connection, command)
            except FrameError as error:
                if isinstance(command, frames.Start):
                    for request in command.requests:
                        self._deliver(
                            request.request_id, _failed(request.index, str(error))
                        )
            except OSError:
                return  # the reader finds the end

    def _read(self) -> None:
        """The reader's thread: events to their sinks until the child ends, then an error to everyone left."""
        try:
            while (event := frames.receive_event(self._connection)) is not None:
                self.watchdog.note_sign()
                self._take(event)
        except (FrameError, OSError) as error:
            logger.error("the engine's process spoke nonsense and is killed: %s", error)
            self.kill("broke the protocol")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(
                _EXIT_S
            )  # its socket closes a moment before it can be collected
        self.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(
                _KILL_S
            )  # one that the system cannot end must not keep its requests waiting
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # wakes the writer
        self._errors.read()
        self._on_end(
            self
        )  # first, so that whoever is told of the end finds the state that belongs to it
        self._end_requests()
        self._outbox.put(None)
        self._connection.close()

    def _take(self, event: frames.Event) -> None:
        if isinstance(event, frames.Events):
            for request_id, part in event.events:
                self._deliver(request_id, part)
        elif isinstance(event, frames.Beat):
            if event.steps != self.steps:
                self.watchdog.note_step()
            self.steps, self.has_work = event.steps, event.has_work
        elif isinstance(event, frames.Answer):
            with self._lock:
                answer = self._answers.get(event.call_id)
            if answer is not None:
                answer.set_result(event)
        elif isinstance(event, frames.Ready):
            self._errors.clear()  # what it waited for is no reason for a later end
            self._on_ready(event.limits)
        elif isinstance(event, frames.Failed):
            self.failure = frames.error_in(event)
        elif self._progress is not None:
            with contextlib.suppress(
                Exception
            ):  # what people are shown must not end the engine
                self._progress(event.message)

    def _deliver(self, request_id: str, event: StreamEvent) -> None:
        """Hand one event to its sink."""
        key = (request_id, event.index)
        with self._lock:
            if self._sinks is None:
                return
            sink = self._sinks.get(key)
            if event.finish_reason is not None:
                self._sinks.pop(key, None)
        if sink is None:
            return
        sink(event)  # the gate's: it does not raise

    def _end_requests(self) -> None:
        with self._lock:
            sinks, self._sinks = self._sinks or {}, None
            answers, self._answers = self._answers, {}
        for (_, index), sink in sinks.items():
            with contextlib.suppress(Exception):
                sink(_failed(index, str(self._gone), type(self._gone).__name__))
        for answer in answers.values():
            if not answer.done():
                answer.set_exception(self._gone)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _failed(index: int, message: str, kind: str | None = None) -> StreamEvent:
    return StreamEvent(
        "", (), FinishReason.ERROR, index=index, error=message, error_kind=kind
    )
