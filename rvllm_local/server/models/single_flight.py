"""Questions to engines from the routes that show them: each asked once at a time, and not waited for too long.

An engine that hangs keeps whoever asks it waiting for half a minute: many who ask must not take a thread each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from rvllm_local.errors import EngineError

T = TypeVar("T")

_ANSWER_S = 5.0  # an engine that does not answer for so long is not well


class Questions:
    """Used on the event loop only. `who` is what is asked, an engine's client."""

    def __init__(self, answer_s: float = _ANSWER_S) -> None:
        self._answer_s = answer_s
        self._open: dict[tuple[int, str], asyncio.Task[Any]] = {}

    async def ask(
        self, who: object, what: str, question: Callable[..., T], *arguments: object
    ) -> T:
        """What `question(*arguments)` answers, asked on a thread.

        Raises `EngineError`, also when no answer comes in time.
        """
        key = (id(who), " ".join(map(str, (what, *arguments))))
        task = self._open.get(key)
        if task is None:
            thread = asyncio.to_thread(question, *arguments)
            task = self._open[key] = asyncio.create_task(thread)
            task.add_done_callback(lambda task: self._forget(key, task))
        try:
            async with asyncio.timeout(self._answer_s):
                answer: T = await asyncio.shield(task)
                return answer
        except TimeoutError:
            raise EngineError(
                f"the engine did not answer for {self._answer_s:g} s"
            ) from None
        finally:
            del task  # what it raised leads to this frame: neither would go

    def _forget(self, key: tuple[int, str], task: asyncio.Task[Any]) -> None:
        del self._open[key]
        if not task.cancelled():
            task.exception()  # nobody may be left to see it
