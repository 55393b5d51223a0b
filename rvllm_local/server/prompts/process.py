"""A model's tokenizer and template at work, in processes that can be killed.

A process of the model reads them, and forks one for each piece of work that runs at the
same time. It is started anew, after a pause, when it has gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from rvllm_local.child_start import Spare
from rvllm_local.conversation import prompt_frames as frames
from rvllm_local.conversation.calls import ChatCall, TextCall
from rvllm_local.conversation.prompts import Prepared
from rvllm_local.engine.limits import EngineLimits
from rvllm_local.errors import (
    EngineCrashedError,
    ModelFileError,
    RvllmError,
)
from rvllm_local.framing import FrameError
from rvllm_local.models.locate import ModelFiles
from rvllm_local.server.helper_process import stop
from rvllm_local.server.http.byte_budget import ByteBudget
from rvllm_local.server.http.problems import Problem
from rvllm_local.server.prompts.fork import Fork
from rvllm_local.server.prompts.start import MEMORY, start
from rvllm_local.text.read_inputs import EncodedInput, Input

logger = logging.getLogger(__name__)

_CPU_SHARE = 0.75  # of the time that work may take, on the processor
_GRACE_S = 1.0  # in which a process that should have ended does
_START_S = 30.0  # in which there should be a process
_AT_ONCE = 4  # pieces of work for one model
_MOST_IDLE = 2  # forks that wait for work
_BACKOFF_S, _MOST_BACKOFF_S = 0.1, 10.0
_STEADY_S = 60.0  # a process that lived so long did not fail at its start
_LARGE = 64 * 2**10  # characters that are not written to a frame on the event loop


class Prompts(Protocol):
    """Makes the prompts of one model."""

    @property
    def facts(self) -> frames.TextFacts:
        """What is known of the model's tokenizer."""

    async def prepare(
        self, call: ChatCall | TextCall, limits: EngineLimits, within_s: float
    ) -> Prepared:
        """What goes to the engine. Raises `Problem`, or as `prepare_chat` does."""

    async def tokenize(
        self, text: str, with_bos: bool, within_s: float
    ) -> frames.TokenIds:
        """The token ids of a text. Raises as `prepare` does."""

    async def encode(
        self, inputs: Sequence[Input], most_tokens: int | None, within_s: float
    ) -> Sequence[EncodedInput]:
        """Texts or pairs as tokens, for a model that reads alone.

        With `most_tokens`, long ones are cut. Raises as `prepare` does.
        """

    async def close(self) -> None:
        """End all processes."""

    def stop(self) -> None:
        """End all processes, from any thread, where no work was begun."""


class PromptProcess:
    """`Prompts` from a process of the model. Made on any thread, used on the event loop.

    `budget` holds the bytes of all work, that of other models as well. Raises
    `ModelFileError` or `UnsupportedModelError` for a tokenizer that cannot be read.
    """

    def __init__(
        self, files: ModelFiles, budget: ByteBudget, spare: Spare | None = None
    ) -> None:
        self._files, self._budget = files, budget
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._starting = asyncio.Lock()
        self._idle: list[Fork] = []
        self._num_failures, self._started_at = 0, time.monotonic()
        self._is_closed = False
        self._process, self._parent_end, self.facts = start(files, spare)

    async def prepare(
        self, call: ChatCall | TextCall, limits: EngineLimits, within_s: float
    ) -> Prepared:
        """What goes to the engine; see `Prompts`."""
        arguments = (call, limits, within_s * _CPU_SHARE, within_s)
        if _num_characters(call) > _LARGE:
            work = await asyncio.to_thread(frames.call_work, *arguments)
        else:
            work = frames.call_work(*arguments)
        done = await self._answer(work, within_s, "preparing the prompt")
        if done.prepared is None:
            raise _broken()
        return done.prepared

    async def tokenize(
        self, text: str, with_bos: bool, within_s: float
    ) -> frames.TokenIds:
        """The token ids of a text; see `Prompts`."""
        work = frames.text_work(text, with_bos, within_s * _CPU_SHARE, within_s)
        done = await self._answer(work, within_s, "tokenizing")
        if done.token_ids is None:
            raise _broken()
        return done.token_ids

    async def encode(
        self, inputs: Sequence[Input], most_tokens: int | None, within_s: float
    ) -> Sequence[EncodedInput]:
        """Texts or pairs as tokens; see `Prompts`."""
        arguments = (inputs, most_tokens, within_s * _CPU_SHARE, within_s)
        work = await asyncio.to_thread(frames.inputs_work, *arguments)
        done = await self._answer(work, within_s, "tokenizing")
        if done.encoded is None:
            raise _broken()
        return done.encoded

    async def close(self) -> None:
        """End all processes. Safe to call twice."""
        self._is_closed = True
        for fork in self._idle:
            fork.close()
        self._idle.clear()
        await asyncio.to_thread(self.stop)

    def stop(self) -> None:
        """End all processes, from any thread, where no work was begun."""
        stop(self._process, self._parent_end)

    async def _answer(self, work: bytes, within_s: float, what: str) -> frames.Done:
        """The answer to a frame of work; `what` is its name for an error."""
        async with self._turn(len(work), within_s, what):
            done = await self._asked(work, within_s, what)
        refused = done.refused
        if refused is None:
            return done
        if refused.kind is None:
            logger.error("%s of %s failed: %s", what, self._files.name, refused.message)
            raise RvllmError(f"{what} failed with {refused.message}")
        raise refused.error()

    @contextlib.asynccontextmanager
    async def _turn(
        self, num_bytes: int, within_s: float, what: str
    ) -> AsyncIterator[None]:
        """Wait for room, and for a process. Raises `Problem` 503 when there is none."""
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(within_s):
                    await stack.enter_async_context(self._budget.held(num_bytes))
                    await stack.enter_async_context(self._slots)
            except TimeoutError:
                raise Problem(
                    503, f"{what} has to wait too long", "busy", retry_after_s=2.0
                ) from None
            yield

    async def _asked(self, work: bytes, within_s: float, what: str) -> frames.Done:
        """Ask a fork; where one that had worked before is gone, a new one as well."""
        while True:
            fork = await self._fork_in_time()
            began = time.monotonic()
            try:
                async with asyncio.timeout(within_s + _GRACE_S):
                    done = await fork.ask(work)
            except TimeoutError:
                self._end(fork)
                raise _late(what, within_s) from None
            except (ConnectionError, FrameError):
                self._end(fork)
                if fork.num_answers:
                    continue  # somebody killed it while it waited for work
                raise _ended(what, within_s, time.monotonic() - began) from None
            except BaseException:
                self._end(fork)
                raise
            self._keep(fork)
            return done

    def _keep(self, fork: Fork) -> None:
        if fork.is_spent or len(self._idle) >= _MOST_IDLE or self._is_closed:
            fork.close()
        else:
            self._idle.append(fork)

    def _end(self, fork: Fork) -> None:
        """Kill a fork that is at work."""
        fork.close()
        with contextlib.suppress(OSError):
            self._parent_end.sendall(frames.END + frames.PID.pack(fork.pid))

    async def _fork_in_time(self) -> Fork:
        """A fork. Raises `Problem` 503 when there is none for long."""
        try:
            async with asyncio.timeout(_START_S):
                return await self._fork()
        except TimeoutError:
            raise Problem(
                503,
                "the process that makes the prompts does not start; try again later",
                "busy",
                retry_after_s=5.0,
            ) from None

    async def _fork(self) -> Fork:
        """A fork that waits for work, or a new one."""
        if self._idle:
            return self._idle.pop()
        for _ in range(2):
            ours, theirs = socket.socketpair()
            with theirs, contextlib.suppress(OSError):
                socket.send_fds(self._parent_end, [frames.NEW], [theirs.fileno()])
            try:
                return await Fork.over(ours)
            except ConnectionError:
                await self._restart(self._process)
        raise EngineCrashedError(
            "the process that makes the prompts ends as soon as it is started"
        )

    async def _restart(self, gone: subprocess.Popen[bytes]) -> None:
        """Start the process anew, unless somebody has. Raises `EngineCrashedError`."""
        async with self._starting:
            if self._process is not gone or self._is_closed:
                return
            if time.monotonic() - self._started_at > _STEADY_S:
                self._num_failures = 0
            pause = min(_BACKOFF_S * 2**self._num_failures, _MOST_BACKOFF_S)
            self._num_failures += 1
            logger.error("the prompts of %s: started anew", self._files.name)
            await asyncio.to_thread(stop, gone, self._parent_end)
            await asyncio.sleep(pause)
            started = await asyncio.to_thread(start, self._files)
            self._process, self._parent_end, self.facts = started
            self._started_at = time.monotonic()


def _num_characters(call: ChatCall | TextCall) -> int:
    """Characters of a call's texts, roughly."""
    if isinstance(call, ChatCall):
        texts = [message.get("content") for message in call.messages]
    else:
        texts = list(call.prompts)
    return sum(len(text) for text in texts if isinstance(text, str | tuple))


def _late(what: str, within_s: float) -> Problem:
    return Problem(
        400, f"{what} took longer than {within_s:g} s and was ended", "deadline"
    )


def _ended(what: str, within_s: float, elapsed_s: float) -> Exception:
    """Why a fork went after `elapsed_s`: its exit status is its own parent's to see.

    The kernel's timers do not fire before their time; what ends sooner is no deadline.
    """
    if elapsed_s >= within_s:
        return _late(what, within_s)
    cpu_s = within_s * _CPU_SHARE
    if elapsed_s >= cpu_s:
        words = f"{what} took more than {cpu_s:g} s of processor time and was ended"
        return Problem(400, words, "deadline")
    return ModelFileError(
        f"{what} was ended: the model's tokenizer or chat template took more than "
        f"{MEMORY // 2**20} MB, or made its library abort"
    )


def _broken() -> RvllmError:
    return RvllmError("the process that makes the prompts gave no answer")
