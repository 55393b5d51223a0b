"""The client whose engine is a child process: starts it, watches it, restarts it.

Loads no MLX. A crash ends every open request with an error at once. The next request
waits for the restart.
"""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from rvllm_local.child_start import ENGINE, Spare
from rvllm_local.clients.admission import AdmissionGate
from rvllm_local.clients.gated import GatedClient
from rvllm_local.clients.process import frames
from rvllm_local.clients.process.connection import ChildProcess
from rvllm_local.engine.limits import EngineLimits
from rvllm_local.errors import ConfigError, EngineClosedError, EngineCrashedError
from rvllm_local.framing import FrameError
from rvllm_local.options import EngineOptions
from rvllm_local.types import (
    EngineSnapshot,
    EventSink,
    Request,
    RequestReport,
)

logger = logging.getLogger(__name__)

# A watchdog that slept this long was stopped itself, and cannot judge the child.
_PAUSE_S = 5.0

State = Literal["loading", "ready", "stalled", "restarting", "failed", "closed"]


@dataclass(frozen=True, slots=True)
class Supervision:
    """How a child is watched.

    It is stalled after `stall_s` with work and no step, or with no sign of life; one
    of several ranks that serve after `ranks_silence_s` with none. After a crash it is restarted after `backoff_s`, doubled each time up to `most_backoff_s`.
    After `most_restarts` within `window_s` there is no further one. A request that
    comes meanwhile waits `wait_s` for the new engine.
    """

    stall_s: float = 60.0
    ranks_silence_s: float = 3.0
    backoff_s: float = 0.1
    most_backoff_s: float = 10.0
    most_restarts: int = 5
    window_s: float = 300.0
    wait_s: float = 2.0
    load_s: float = 3600.0
    close_s: float = 20.0


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """How the engine is, judged by its steps.

    `message` says what to do about a bad state. `steps` counts those of the running
    process; `last_step_age_s` is None before its first.
    """

    state: State
    model: str
    steps: int
    last_step_age_s: float | None
    last_sign_s: float  # seconds since the engine's last sign of life
    restarts: int
    message: str = ""
    pid: int | None = None


class ProcessClient(GatedClient):
    """The client contract over a supervised child process.

    Every method may be called from any thread. The constructor returns when the engine
    serves, and raises what building it raised. With `wait=False` it returns at once,
    and `health` and `wait_ready` tell how the loading goes. `command` starts the child;
    a `spare` was started by it before.
    """

    def __init__(
        self,
        model: str,
        options: EngineOptions | None = None,
        *,
        supervision: Supervision | None = None,
        progress: Callable[[str], None] | None = None,
        wait: bool = True,
        command: Sequence[str] = ENGINE,
        spare: Spare | None = None,
    ) -> None:
        self._load = frames.Load(model, options or EngineOptions())
        _check(self._load)
        self._rules = supervision or Supervision()
        self._silence_s = self._rules.stall_s
        if self._load.options.ranks > 1:
            self._silence_s = self._rules.ranks_silence_s
        self._progress = progress
        self._command = command
        self._spare = spare
        self._changed = threading.Condition()
        self._state: State = "loading"
        self._message = "the model is still being loaded; try again in a moment"
        self._restarts: collections.deque[float] = collections.deque()
        self._num_restarts = 0
        self._child: ChildProcess | None = None
        # When the next child is to be started, if one is.
        self._start_at: float | None = time.monotonic()
        self._gate: AdmissionGate | None = None
        self._failure: Exception | None = None
        self._released = threading.Event()
        self._supervisor = threading.Thread(
            target=self._supervise, name="rvllm-supervisor", daemon=True
        )
        self._supervisor.start()
        if wait:
            try:
                self.wait_ready(self._rules.load_s)
            except BaseException:
                self.close()
                raise

    def wait_ready(self, timeout_s: float | None = None) -> None:
        """Wait until the engine serves.

        Raises what building it raised, or `EngineCrashedError`.
        """
        with self._changed:
            self._changed.wait_for(self._has_loaded, timeout_s)
            if self._state == "closed":
                raise EngineClosedError("the engine is closed")
            if self._state != "ready":
                raise self._failure or EngineCrashedError(
                    self._message or "the engine did not come up"
                )

    def _has_loaded(self) -> bool:
        """True once the engine serves, or never will."""
        return self._state in ("ready", "failed", "closed")

    def _ready_gate(self) -> AdmissionGate:
        self._ready_child()
        assert self._gate is not None
        return self._gate

    def _queue(self, requests: Sequence[Request], sink: EventSink) -> None:
        child = self._ready_child()
        while not child.start(tuple(requests), sink):
            child = self._ready_child(after=child)

    def cancel(self, request_id: str) -> None:
        """Ask the engine to end a request. A crash has ended it already."""
        child = self._child
        if child is not None:
            child.cancel(request_id)

    def stats(self) -> dict[str, int | float | str]:
        return self._ask("stats").stats or {}

    def snapshot(self) -> EngineSnapshot:
        snapshot = self._ask("snapshot").snapshot
        assert snapshot is not None
        return snapshot

    def explain(self, request_id: str) -> tuple[RequestReport, ...]:
        return self._ask("explain", request_id).reports or ()

    def health(self) -> EngineHealth:
        """How the engine is, from its own steps. Never blocks."""
        with self._changed:
            state = self._state
            message = self._message
            child = self._child
        model = self._load.model
        now = time.monotonic()
        if child is None:
            return EngineHealth(state, model, 0, None, 0.0, self._num_restarts, message)
        step_age = None
        if child.steps:
            step_age = now - child.watchdog.last_step
        return EngineHealth(
            state,
            model,
            child.steps,
            step_age,
            now - child.watchdog.last_sign,
            self._num_restarts,
            message,
            child.pid,
        )

    def close(self) -> None:
        """End open requests and the child. Safe to call twice."""
        with self._changed:
            if self._state == "closed":
                return
            child = self._child
            self._child = None
            self._state = "closed"
            self._message = "the engine is closed"
            self._changed.notify_all()
        if child is not None:
            child.close(self._rules.close_s, EngineClosedError("the engine was closed"))
        self._released.set()
        if threading.current_thread() is not self._supervisor:
            self._supervisor.join(self._rules.close_s)

    def _ready_child(self, after: ChildProcess | None = None) -> ChildProcess:
        """The serving child. Waits a little for one that is being restarted.

        `after` has ended.
        """

        def is_decided_now() -> bool:
            if self._state == "ready":
                return self._child is not after
            return self._state in ("failed", "closed")

        with self._changed:
            is_decided = self._changed.wait_for(is_decided_now, self._rules.wait_s)
            if self._state == "closed":
                raise EngineClosedError("the engine is closed")
            if not is_decided or self._state != "ready" or self._child is None:
                raise EngineCrashedError(
                    self._message
                    or "the engine is being restarted; try again in a few seconds"
                )
            return self._child

    def _ask(self, what: str, argument: str = "") -> frames.Answer:
        return self._ready_child().ask(what, argument)

    def _supervise(self) -> None:
        """Start children and watch them, on one thread, as long as the client lives.

        The kernel ends a child with the thread that started it.
        """
        shortest = min(self._rules.stall_s, self._silence_s)
        tick = min(1.0, shortest / 16)
        longest_sleep = min(_PAUSE_S, shortest)
        checked = time.monotonic()
        while True:
            with self._changed:
                if self._state not in ("closed", "failed"):
                    self._changed.wait(self._pause(tick))
                if self._state in ("closed", "failed"):
                    break
                child = self._child
                is_due = self._pause(tick) == 0.0
                if is_due:
                    self._start_at = None
            now = time.monotonic()
            if is_due:
                self._start_child()
            elif child is not None:
                if now - checked > longest_sleep:
                    child.watchdog.forgive()
                self._judge(child)
            checked = now
        self._released.wait()  # the child may still be putting its cache away

    def _pause(self, tick: float) -> float:
        """Seconds until the next start, at most a tick; 0 if one is due."""
        if self._start_at is None:
            return tick
        left = self._start_at - time.monotonic()
        return min(tick, max(0.0, left))

    def _start_child(self) -> None:
        try:
            child = ChildProcess(
                self._load,
                self._on_ready,
                self._on_end,
                self._progress,
                self._command,
                self._spare,
            )
        except OSError as error:
            self._plan_restart(f"it could not be started: {error.strerror}", None)
            return
        with self._changed:
            is_closed = self._state == "closed"
            if not is_closed:
                self._child = child
        child.run()
        if is_closed:
            child.close(0, EngineClosedError("the engine was closed"))

    def _judge(self, child: ChildProcess) -> None:
        """Kill a child that has work and makes no step, or gives no sign of life."""
        silence_s = self._rules.stall_s
        if self._state == "ready":
            silence_s = self._silence_s
        reason = child.stalled_for(self._rules.stall_s, silence_s)
        if reason is None:
            return
        with self._changed:
            if self._child is not child or self._state == "closed":
                return
            self._state = "stalled"
            self._message = (
                f"the engine {reason} and is being stopped; try again in a moment"
            )
        logger.error("the engine %s and is killed", reason)
        child.kill(reason)

    def _on_ready(self, limits: EngineLimits) -> None:
        with self._changed:
            if self._state == "closed":
                return
            self.limits = limits
            if self._gate is None:
                self._gate = AdmissionGate(limits.max_open)
            self._state = "ready"
            self._message = ""
            self._changed.notify_all()

    def _on_end(self, child: ChildProcess) -> None:
        """The child has gone; called once for each, on its reader's thread."""
        with self._changed:
            if self._state == "closed" or self._child is not child:
                return
            self._plan_restart(child.last_words(), child.failure)

    def _plan_restart(self, how: str, failure: Exception | None) -> None:
        """Decide whether there is a next child, and when."""
        rules = self._rules
        with self._changed:
            now = time.monotonic()
            self._child = None
            self._restarts.append(now)
            while self._restarts[0] < now - rules.window_s:
                self._restarts.popleft()
            count = len(self._restarts)
            if failure is not None and self._gate is None:
                # It never served: trying again changes nothing.
                self._state = "failed"
                self._message = str(failure)
                self._failure = failure
            elif count > rules.most_restarts:
                self._state = "failed"
                self._message = (
                    f"the engine crashed {count} times in {rules.window_s:.0f} s "
                    f"and is not started again: {how}; see the log, then restart"
                )
            else:
                self._state = "restarting"
                self._message = (
                    f"the engine ended ({how}) and is being restarted; "
                    "try again in a moment"
                )
                self._num_restarts += 1
                pause = rules.backoff_s * 2.0 ** min(count - 1, 60)
                self._start_at = now + min(pause, rules.most_backoff_s)
            self._changed.notify_all()
            logger.error("%s", self._message)


def _check(load: frames.Load) -> None:
    try:
        frames.encode(load)
    except FrameError as error:
        raise ConfigError(
            f"the model's name or an option is not Unicode text: {load.model!r}"
        ) from error
