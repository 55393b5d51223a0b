"""Work that must not stop the event loop: threads with a deadline, after which the work is ended, not just left.

A chat template can loop without end inside its sandbox; an exception that is raised in its thread ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from rvllm_local.interrupts import Interrupt
from rvllm_local.server.http.problems import Problem, shutting_down

T = TypeVar("T")


class _DeadlineError(BaseException):
    """Raised inside a worker's thread; not an Exception, so that no template catches it."""


class Workers:
    """A few threads for templates, tokenizers and calls that may wait. Safe from the event loop only."""

    def __init__(self, num_threads: int = 4) -> None:
        self._pool = ThreadPoolExecutor(num_threads, "rvllm-text")
        self._running: set[_Task[Any]] = set()
        self._slots = asyncio.Semaphore(
            num_threads
        )  # work in a slot begins at once: its deadline is its own

    async def run(self, work: Callable[[], T], timeout_s: float, what: str) -> T:
        """`work()` on a thread. Raises `Problem` 503 when no thread was free in time, 400 when it ran too long."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._slots.acquire()
        except TimeoutError:
            raise Problem(
                503, f"{what} has to wait too long", "busy", retry_after_s=2.0
            ) from None
        loop = asyncio.get_running_loop()
        late = f"{what} took longer than {timeout_s:g} s and was ended"
        task = _Task(work, late)
        self._running.add(task)
        try:
            future = self._pool.submit(task)
        except RuntimeError:  # closed
            raise shutting_down() from None
        # The deadline is the work's, not the caller's: who goes away first must not leave a thread behind that never ends.
        alarm = loop.call_later(timeout_s, task.end)
        future.add_done_callback(self._release_on(loop, alarm, task))
        done = asyncio.wrap_future(future)
        done.add_done_callback(
            lambda done: done.cancelled() or done.exception()
        )  # nobody may be left to see it
        try:
            # `wait_for` of Python 3.11 forgets a cancellation that comes as the work ends,
            # and its caller would go on for a client that has gone.
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(done)
        except TimeoutError:
            raise Problem(400, late, "deadline") from None
        finally:
            del done, future  # what they raise leads to this frame: neither would go

    def close(self) -> None:
        """Take no more work, and end what runs."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for task in list(self._running):
            task.end()

    def _release_on(
        self,
        loop: asyncio.AbstractEventLoop,
        alarm: asyncio.TimerHandle,
        task: _Task[T],
    ) -> Callable[[Future[T]], None]:
        def settle() -> None:
            alarm.cancel()
            self._running.discard(task)
            self._slots.release()

        def release(_: Future[T]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(settle)

        return release


class _Task(Generic[T]):
    """One call, and the thread it runs on while it runs.

    Raises a `Problem` with the words `late` when it was ended.
    """

    def __init__(self, work: Callable[[], T], late: str) -> None:
        self._work, self._late = work, late
        self._lock = threading.Lock()
        self._interrupt: Interrupt | None = None
        self._is_late = False

    def __call__(self) -> T:
        with self._lock:
            if self._is_late:
                raise Problem(400, self._late, "deadline")
            self._interrupt = interrupt = Interrupt(_DeadlineError)
        try:
            try:
                return self._work()
            finally:
                interrupt.close()  # the thread is the pool's again: nothing may reach the work that comes next
        except _DeadlineError:
            interrupt.close()
            raise Problem(400, self._late, "deadline") from None
        except Exception:
            raise
        except BaseException as error:  # a panic of a library in Rust, whose text can quote what it was given
            name = type(error).__name__
            raise Problem(
                500, f"the server failed with {name}; see its log", "internal_error"
            ) from None

    def end(self) -> None:
        """Raise in its thread, if it still runs."""
        with self._lock:
            self._is_late = True
            if self._interrupt is not None:
                self._interrupt.fire()
