"""The engine in a child process: starts it, watches it, restarts it, and offers the client contract.

Loads no MLX. A crash ends every open request with an error at once; the next request waits for the restart.
"""

from __future__ import annotations

import collections
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rvllm_local.client import make_requests, open_stream
from rvllm_local.engine import frames
from rvllm_local.engine.child_process import ChildProcess
from rvllm_local.engine.gate import AdmissionGate
from rvllm_local.engine.limits import EngineLimits
from rvllm_local.engine.options import EngineOptions
from rvllm_local.engine.stream import TokenStream
from rvllm_local.errors import EngineClosedError, EngineCrashedError, EngineError
from rvllm_local.types import EngineSnapshot, EventSink, Request, RequestReport, SamplingParams

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Supervision:
    """How a child is watched. It is stalled after `stall_s` with work and no step, or with no sign of life.

    After a crash it is restarted after `backoff_s`, doubled each time up to `most_backoff_s`; more than
    `most_restarts` within `window_s` are given up. A request that comes meanwhile waits `wait_s` for the new engine.
    """

    stall_s: float = 60.0
    backoff_s: float = 0.1
    most_backoff_s: float = 10.0
    most_restarts: int = 5
    window_s: float = 300.0
    wait_s: float = 2.0
    load_s: float = 3600.0
    close_s: float = 20.0


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """`state` is loading, ready, restarting, failed or closed; `message` says what to do about the bad ones."""

    state: str
    steps: int
    last_sign_s: float  # seconds since the engine's last sign of life
    restarts: int
    message: str = ""
    pid: int | None = None


class ProcessClient:
    """The client contract over a supervised child process. Every method may be called from any thread.

    The constructor returns when the engine serves, and raises what building it raised.
    """

    limits: EngineLimits

    def __init__(
        self,
        model: str,
        options: EngineOptions | None = None,
        *,
        supervision: Supervision | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self._load = frames.Load(model, options or EngineOptions())
        self._rules = supervision or Supervision()
        self._progress = progress
        self._changed = threading.Condition()
        self._state, self._message = "loading", ""
        self._restarts: collections.deque[float] = collections.deque()
        self._num_restarts = 0
        self._child: ChildProcess | None = None
        self._gate: AdmissionGate | None = None
        self._start_child()
        with self._changed:
            self._changed.wait_for(lambda: self._state != "loading", self._rules.load_s)
            state, message = self._state, self._message
            failure = self._child.failure if self._child is not None else None
        if state != "ready":
            self.close()
            raise failure or EngineCrashedError(message or "the engine did not come up")
        threading.Thread(target=self._watch, name="rvllm-watchdog", daemon=True).start()

    def start(self, requests: Sequence[Request], sink: EventSink) -> None:
        """Queue the choices of one request; see `client.Client.start`."""
        child = self._ready_child()
        for request in requests:
            self.limits.check(request)
        assert self._gate is not None
        counted = self._gate.admit(len(requests), sink)
        try:
            while not child.start(tuple(requests), counted):
                child = self._ready_child(after=child)
        except EngineError:
            self._gate.release(len(requests))
            raise

    def submit(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> TokenStream:
        return open_stream(self, make_requests(prompt_token_ids, params))

    def cancel(self, request_id: str) -> None:
        """Ask the engine to end a request. A crash has ended it already."""
        child = self._child
        if child is not None:
            child.post(frames.Cancel(request_id))

    def stats(self) -> dict[str, int | float | str]:
        return self._ask("stats").stats or {}

    def snapshot(self) -> EngineSnapshot:
        found = self._ask("snapshot").snapshot
        assert found is not None
        return found

    def explain(self, request_id: str) -> tuple[RequestReport, ...]:
        return self._ask("explain", request_id).reports or ()

    def health(self) -> EngineHealth:
        """How the engine is, from its own steps. Never blocks."""
        with self._changed:
            state, message, child = self._state, self._message, self._child
        if child is None:
            return EngineHealth(state, 0, 0.0, self._num_restarts, message)
        age = time.monotonic() - child.last_sign
        return EngineHealth(state, child.steps, age, self._num_restarts, message, child.pid)

    def close(self) -> None:
        """End open requests and the child. Safe to call twice."""
        with self._changed:
            child, self._child = self._child, None
            self._state = "closed"
            self._changed.notify_all()
        if child is not None:
            child.close(self._rules.close_s, EngineClosedError("the engine was closed"))

    def _ready_child(self, after: ChildProcess | None = None) -> ChildProcess:
        """The serving child; waits a little for one that is being restarted. `after` is known to have ended."""

        def settled() -> bool:
            return self._state in ("failed", "closed") or (self._state == "ready" and self._child is not after)

        with self._changed:
            is_settled = self._changed.wait_for(settled, self._rules.wait_s)
            if self._state == "closed":
                raise EngineClosedError("the engine is closed")
            if not is_settled or self._state != "ready" or self._child is None:
                raise EngineCrashedError(self._message or "the engine is being restarted; try again in a few seconds")
            return self._child

    def _ask(self, what: str, argument: str = "") -> frames.Answer:
        return self._ready_child().ask(what, argument)

    def _start_child(self) -> None:
        child = ChildProcess(self._load, self._on_ready, self._on_end, self._progress)
        with self._changed:
            if self._state == "closed":
                child.kill()
                return
            self._child = child
        child.run()

    def _on_ready(self, limits: EngineLimits) -> None:
        with self._changed:
            if self._state == "closed":
                return
            self.limits = limits
            if self._gate is None:
                self._gate = AdmissionGate(limits.max_open)
            self._state, self._message = "ready", ""
            self._changed.notify_all()

    def _on_end(self, child: ChildProcess) -> None:
        """The child has gone; called once for each, on its reader's thread, after its requests were ended."""
        with self._changed:
            if self._state == "closed" or self._child is not child:
                return
            if child.failure is not None or self._gate is None:  # it never served: trying again changes nothing
                self._state, self._message = "failed", str(child.failure or child.last_words())
                self._changed.notify_all()
                return
            now = time.monotonic()
            self._restarts.append(now)
            while self._restarts and self._restarts[0] < now - self._rules.window_s:
                self._restarts.popleft()
            count = len(self._restarts)
            if count > self._rules.most_restarts:
                self._state = "failed"
                self._message = (
                    f"the engine crashed {count} times in {self._rules.window_s:.0f} s and is not started again: "
                    f"{child.last_words()}; see the log, then restart"
                )
                self._changed.notify_all()
                return
            self._state = "restarting"
            self._message = f"the engine ended ({child.last_words()}) and is being restarted; try again in a moment"
            self._num_restarts += 1
        logger.error("%s", self._message)
        pause = min(self._rules.backoff_s * 2 ** (count - 1), self._rules.most_backoff_s)
        threading.Thread(target=self._restart, args=(pause,), name="rvllm-restart", daemon=True).start()

    def _restart(self, pause: float) -> None:
        with self._changed:
            if self._changed.wait_for(lambda: self._state == "closed", pause):
                return
        self._start_child()

    def _watch(self) -> None:
        """Kill a child that has work and makes no step, or gives no sign of life."""
        while True:
            with self._changed:
                if self._changed.wait_for(
                    lambda: self._state in ("closed", "failed"), min(1.0, self._rules.stall_s / 4)
                ):
                    return
                child, serving = self._child, self._state == "ready"
            if child is None or not serving:
                continue
            now = time.monotonic()
            if now - child.last_sign > self._rules.stall_s or (
                child.has_work and now - child.last_step > self._rules.stall_s
            ):
                logger.error("the engine made no step for %.0f s and is killed", self._rules.stall_s)
                child.kill()


def process_is_alive(pid: int) -> bool:
    """True while a process with this id exists and can be signalled."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
