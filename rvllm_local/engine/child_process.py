"""One engine process as its parent sees it: the connection, the open requests and questions, and the end of it all."""

from __future__ import annotations

import collections
import contextlib
import itertools
import logging
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from rvllm_local import errors
from rvllm_local.engine import frames
from rvllm_local.engine.limits import EngineLimits
from rvllm_local.errors import EngineCrashedError, EngineError, ParameterError, RvllmError
from rvllm_local.types import EventSink, FinishReason, Request, StreamEvent

logger = logging.getLogger(__name__)

_STDERR_LINES = 50
_ANSWER_TIMEOUT_S = 30.0


class ChildProcess:
    """One process, its connection, and the requests and questions that are open with it."""

    def __init__(
        self,
        load: frames.Load,
        on_ready: Callable[[EngineLimits], None],
        on_end: Callable[[ChildProcess], None],
        progress: Callable[[str], None] | None,
    ) -> None:
        ours, theirs = socket.socketpair()
        self._connection = ours
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rvllm_local.engine.child", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,  # the terminal's signals are the parent's
            )
        self.pid = self._process.pid
        self._load, self._on_ready, self._on_end, self._progress = load, on_ready, on_end, progress
        self._lock = threading.Lock()
        self._sinks: dict[tuple[str, int], EventSink] | None = {}  # None once the child has gone
        self._answers: dict[int, Future[frames.Answer]] = {}
        self._call_ids = itertools.count()
        self._outbox: queue.SimpleQueue[frames.Command | None] = queue.SimpleQueue()
        self._stderr: collections.deque[str] = collections.deque(maxlen=_STDERR_LINES)
        self._gone: Exception = EngineCrashedError("the engine's process ended while the request was open")
        self.failure: RvllmError | None = None
        self.steps, self.has_work = 0, False
        self.last_sign = self.last_step = time.monotonic()

    def run(self) -> None:
        """Start the threads that serve the connection."""
        self._outbox.put(self._load)
        self._threads = [
            threading.Thread(target=target, name=f"rvllm-child-{name}", daemon=True)
            for name, target in (("writer", self._write), ("stderr", self._keep_stderr), ("reader", self._read))
        ]
        for thread in self._threads:
            thread.start()

    def start(self, requests: tuple[Request, ...], sink: EventSink) -> bool:
        """Hand requests over; False if the child has gone."""
        with self._lock:
            if self._sinks is None:
                return False
            for request in requests:
                self._sinks[(request.request_id, request.index)] = sink
            if not self.has_work:
                self.last_step = time.monotonic()  # the watchdog counts from here
        self.post(frames.Start(requests))
        return True

    def ask(self, what: str, argument: str) -> frames.Answer:
        answer: Future[frames.Answer] = Future()
        call_id = next(self._call_ids)
        with self._lock:
            if self._sinks is None:
                raise self._gone
            self._answers[call_id] = answer
        self.post(frames.Ask(call_id, what, argument))
        try:
            return answer.result(_ANSWER_TIMEOUT_S)
        except TimeoutError as error:
            raise EngineError(f"the engine did not answer within {_ANSWER_TIMEOUT_S:.0f} s") from error
        finally:
            with self._lock:
                self._answers.pop(call_id, None)

    def post(self, command: frames.Command) -> None:
        self._outbox.put(command)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)

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
        """The exit status, and the last line that the child wrote to stderr."""
        code = self._process.poll()
        how = "no exit status" if code is None else f"signal {-code}" if code < 0 else f"exit status {code}"
        return f"{how}: {self._stderr[-1]}" if self._stderr else how

    def _write(self) -> None:
        while (command := self._outbox.get()) is not None:
            try:
                frames.send(self._connection, command)
            except frames.FrameError as error:
                if isinstance(command, frames.Start):
                    for request in command.requests:
                        self._deliver(request.request_id, _failed(request.index, str(error)))
            except OSError:
                return  # the reader finds the end

    def _read(self) -> None:
        """The reader's thread: events to their sinks until the child ends, then an error to everyone left."""
        try:
            while (event := frames.receive_event(self._connection)) is not None:
                self.last_sign = time.monotonic()
                self._take(event)
        except (frames.FrameError, OSError) as error:
            logger.error("the engine's process spoke nonsense and is killed: %s", error)
            self.kill()
        self._process.wait()
        self._end_requests()
        self._outbox.put(None)
        self._connection.close()
        self._on_end(self)

    def _take(self, event: frames.Event) -> None:
        if isinstance(event, frames.Events):
            for request_id, part in event.events:
                self._deliver(request_id, part)
        elif isinstance(event, frames.Beat):
            if event.steps != self.steps or not event.has_work:
                self.last_step = time.monotonic()
            self.steps, self.has_work = event.steps, event.has_work
        elif isinstance(event, frames.Answer):
            with self._lock:
                answer = self._answers.get(event.call_id)
            if answer is not None:
                answer.set_result(event)
        elif isinstance(event, frames.Ready):
            self._on_ready(event.limits)
        elif isinstance(event, frames.Failed):
            self.failure = _error(event)
        elif self._progress is not None:
            self._progress(event.message)

    def _deliver(self, request_id: str, event: StreamEvent) -> None:
        """Hand one event to its sink; one that raises harms only its own request."""
        key = (request_id, event.index)
        with self._lock:
            if self._sinks is None:
                return
            sink = self._sinks.get(key)
            if event.finish_reason is not None:
                self._sinks.pop(key, None)
        if sink is None:
            return
        try:
            sink(event)
        except Exception:
            logger.exception("a request's sink failed; the request is cancelled")
            with self._lock:
                if self._sinks is not None:
                    self._sinks.pop(key, None)
            self.post(frames.Cancel(request_id))

    def _end_requests(self) -> None:
        with self._lock:
            sinks, self._sinks = self._sinks or {}, None
            answers, self._answers = self._answers, {}
        for (_, index), sink in sinks.items():
            with contextlib.suppress(Exception):
                sink(_failed(index, str(self._gone)))
        for answer in answers.values():
            if not answer.done():
                answer.set_exception(self._gone)

    def _keep_stderr(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            for line in iter(lambda: stream.readline(4096), b""):
                text = line.decode(errors="replace").rstrip()
                self._stderr.append(text)
                logger.warning("engine: %s", text)


def _failed(index: int, message: str) -> StreamEvent:
    return StreamEvent("", (), FinishReason.ERROR, index=index, error=message)


def _error(failed: frames.Failed) -> RvllmError:
    """The error that the child met, as the class that it was."""
    kind = getattr(errors, failed.kind, RvllmError)
    if not (isinstance(kind, type) and issubclass(kind, RvllmError)):
        return RvllmError(failed.message)
    if issubclass(kind, ParameterError):
        return kind(failed.parameter or "", failed.message)
    if kind is errors.QueueFullError:
        return RvllmError(failed.message)
    return kind(failed.message)
