"""The engine's thread: builds the core, runs its steps, and takes commands from other threads.

MLX's streams belong to a thread, so everything that touches MLX happens here, the
loading included.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import gc
import queue
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rvllm_local.engine.core_contract import Core
from rvllm_local.errors import EngineClosedError, RvllmError

T = TypeVar("T")

_IDLE_PAUSE_S = 0.01


class EngineLoop:
    """Runs one core on one thread.

    Commands run between steps, in the order in which they came. The constructor returns
    when the core is built, or raises what building it raised.
    """

    def __init__(self, build: Callable[[], Core], *, quiet_gc: bool = False) -> None:
        self._commands: queue.SimpleQueue[Callable[[Core], None] | None] = (
            queue.SimpleQueue()
        )
        self._ready: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._closed = threading.Event()
        self._posting = threading.RLock()  # nothing is posted after the end; a stream that is collected meanwhile may post
        self._quiet_gc = quiet_gc  # the process has switched garbage collection off: collect when nobody waits
        self.progress = (
            0,
            False,
        )  # steps done, and whether there is work; read by other threads
        self._thread = threading.Thread(
            target=self._run, args=(build,), name="rvllm-engine", daemon=True
        )
        self._thread.start()
        try:
            self._ready.result()
        except BaseException:
            self._join()
            raise
        atexit.register(
            self.close
        )  # MLX aborts an interpreter that ends while its thread runs

    def post(self, command: Callable[[Core], None]) -> None:
        """Run `command` on the engine's thread before its next step; does not wait."""
        with self._posting:
            if self._closed.is_set():
                raise EngineClosedError("the engine is closed")
            self._commands.put(command)

    def call(self, command: Callable[[Core], T]) -> T:
        """Run `command` on the engine's thread and return what it returns."""
        result: concurrent.futures.Future[T] = concurrent.futures.Future()
        self.post(lambda core: _resolve(result, lambda: command(core)))
        while not result.done() and self._thread.is_alive():
            concurrent.futures.wait([result], timeout=0.5)
        if not result.done():
            raise EngineClosedError("the engine was closed")
        return result.result()

    def close(self) -> None:
        """End open requests, stop the thread and wait for it. Safe to call twice."""
        atexit.unregister(self.close)
        with self._posting:
            self._closed.set()
            self._commands.put(None)
        self._join()

    def _join(self) -> None:
        self._thread.join()
        _await_system_thread(self._thread)

    def _run(self, build: Callable[[], Core]) -> None:
        try:
            core = build()
        except BaseException as error:
            self._closed.set()
            self._ready.set_exception(error)
            return
        self._ready.set_result(None)
        del build
        while self._take_commands(core):
            self.progress = (core.num_steps, core.has_work)
            if core.has_work:
                self._step(core)
            elif core.has_idle_work:
                core.idle()
        core.close("the engine was closed while the request was open")

    def _take_commands(self, core: Core) -> bool:
        """Run what was posted; wait for it when there is nothing else to do.

        False at the end.
        """
        while True:
            try:
                command = self._next_command(core)
            except queue.Empty:
                return True
            if command is None:
                return False
            command(core)

    def _next_command(self, core: Core) -> Callable[[Core], None] | None:
        """The next command: at once while requests run, after a pause while there is idle work, else however long."""
        if core.has_work:
            return self._commands.get(block=False)
        self.progress = (core.num_steps, False)
        if core.has_idle_work:
            return self._commands.get(timeout=_IDLE_PAUSE_S)
        if self._quiet_gc:
            gc.collect()
        return self._commands.get()

    def _step(self, core: Core) -> None:
        try:
            core.step()
        except Exception as error:  # the model call failed: nobody's KV can be trusted, all end with an error
            detail = (
                str(error) if isinstance(error, RvllmError) else type(error).__name__
            )
            core.fail_all(f"a step of the engine failed: {detail}")


def _resolve(result: concurrent.futures.Future[T], compute: Callable[[], T]) -> None:
    try:
        result.set_result(compute())
    except Exception as error:
        result.set_exception(error)


def _await_system_thread(thread: threading.Thread) -> None:
    """Wait until the system's thread has ended too, for a second at most.

    `join` returns earlier, and MLX's thread-local destructors then still take the
    interpreter's lock: an interpreter that shuts down meanwhile aborts the process.
    """
    deadline = time.monotonic() + 1.0
    while _is_alive(thread) and time.monotonic() < deadline:
        time.sleep(0.001)


def _is_alive(thread: threading.Thread) -> bool:
    tasks = Path("/proc/self/task")
    if tasks.is_dir():
        return (tasks / str(thread.native_id)).exists()
    if thread.ident is None or not hasattr(signal, "pthread_kill"):
        return False
    try:
        signal.pthread_kill(thread.ident, 0)
    except ProcessLookupError:
        return False
    return True
