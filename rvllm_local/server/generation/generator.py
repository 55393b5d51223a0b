"""Runs calls: has each prepared, starts it on its model, and keeps it in sight.

Knows neither HTTP nor a dialect.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from rvllm_local.clients.contract import make_requests
from rvllm_local.conversation.calls import ChatCall, TextCall
from rvllm_local.conversation.output import OutputParser
from rvllm_local.conversation.prompts import Prepared
from rvllm_local.errors import EngineError
from rvllm_local.server.generation.generation import Choice, Generation
from rvllm_local.server.generation.mailbox import Mailbox, Switchboard
from rvllm_local.server.generation.metrics import Metrics
from rvllm_local.server.generation.workers import Workers
from rvllm_local.server.http.problems import Problem, bad_request
from rvllm_local.server.http.settings import ServerSettings
from rvllm_local.server.models.registry import Registry
from rvllm_local.server.models.served_model import Served
from rvllm_local.types import Request


@dataclass(frozen=True, slots=True)
class _Start:
    """What is handed to one model's engine: `groups` are the choices of each prompt."""

    served: Served
    groups: Sequence[Sequence[Request]]
    new_parser: Callable[[], OutputParser]
    left_out: tuple[str, ...] = ()  # parts of schemas that are not enforced

    @property
    def engine_ids(self) -> list[str]:
        return [group[0].request_id for group in self.groups]

    @property
    def has_grammar(self) -> bool:
        return self.groups[0][0].grammar is not None

    def choices(self) -> list[Choice]:
        """A choice for each request, in order."""
        choices = []
        for group in self.groups:
            for request in group:
                prompt = request.prompt_token_ids
                choices.append(Choice(self.new_parser(), prompt))
        return choices

    def check(self) -> None:
        """Raise `Problem` for more choices than can ever be admitted."""
        num_choices, most = (
            sum(map(len, self.groups)),
            self.served.client.limits.max_open,
        )
        if num_choices > most:
            raise bad_request(
                f"the request asks for {num_choices} choices, and at most {most} may "
                "be open; ask for fewer",
                "n",
            )

    def cancel(self) -> None:
        """End everything in the engine; what is unknown there is left alone."""
        for engine_id in self.engine_ids:
            with contextlib.suppress(EngineError):
                self.served.client.cancel(engine_id)


class Generator:
    """Turns calls into generations. Used on the event loop only."""

    def __init__(
        self,
        registry: Registry,
        workers: Workers,
        settings: ServerSettings,
        metrics: Metrics,
    ) -> None:
        self._registry, self._workers = registry, workers
        self._settings, self._metrics = settings, metrics
        self._switchboard = Switchboard(asyncio.get_running_loop())
        self._open: set[Generation] = set()
        self._opening: set[asyncio.Task[object]] = set()
        self._token_ids: set[str] = set()  # of requests whose ids are their callers'
        self._aborted: Problem | None = None

    @property
    def num_open(self) -> int:
        """Requests that are running or being opened."""
        return len(self._open) + len(self._opening)

    @property
    def shortest_gap_s(self) -> float:
        """Seconds between tokens of the quickest stream that runs; 0 without one."""
        shortest = 0.0
        for generation in self._open:
            gap = generation.token_gap_s
            if gap is not None and (not shortest or gap < shortest):
                shortest = gap
        return shortest

    def abort(self, problem: Problem) -> None:
        """End everything that is open, or is being opened, with this problem."""
        self._aborted = problem
        for generation in self._open:
            generation.fail(problem)
        for task in self._opening:
            task.cancel()

    def cancel(self, request_id: str) -> bool:
        """Ask the engine to end a request; False if none with this id is open."""
        is_open = False
        for generation in self._open:
            if generation.request_id == request_id:
                generation.cancel()
                is_open = True
        return is_open

    @contextlib.asynccontextmanager
    async def open(
        self, call: ChatCall | TextCall, request_id: str
    ) -> AsyncIterator[Generation]:
        """A running generation, cancelled if the block is left before its end.

        Raises `Problem`, or what the engine and the text modules raise.
        """
        async with contextlib.AsyncExitStack() as stack:
            with self._abortable():
                lease = self._registry.lease(call.model)
                served = await stack.enter_async_context(lease)
                prepared = await served.prompts.prepare(
                    _with_own_sampling(served, call),
                    served.client.limits,
                    self._settings.prepare_timeout_s,
                )
                groups = _groups(prepared, request_id, call.priority, served.adapter)
                start = _Start(
                    served,
                    groups,
                    functools.partial(prepared.new_parser, call.callable_tools),
                    prepared.left_out,
                )
                generation = await self._start(stack, start)
            yield generation

    @contextlib.asynccontextmanager
    async def open_tokens(
        self, model: str, requests: Sequence[Request]
    ) -> AsyncIterator[Generation]:
        """Like `open`, for the choices of one request in the engine's own terms.

        It has an id of its own, which must not be open already.
        """
        request_id = requests[0].request_id
        if request_id in self._token_ids:
            raise bad_request(
                "a request with this id is already open; give it another id",
                "request_id",
            )
        async with contextlib.AsyncExitStack() as stack:
            self._token_ids.add(request_id)
            stack.callback(self._token_ids.discard, request_id)
            with self._abortable():
                lease = self._registry.lease(model)
                served = await stack.enter_async_context(lease)
                adapter = served.adapter
                if adapter is not None:
                    requests = [replace(row, adapter=adapter) for row in requests]
                start = _Start(served, [requests], lambda: OutputParser(None))
                generation = await self._start(stack, start)
            yield generation

    @contextlib.contextmanager
    def _abortable(self) -> Iterator[None]:
        """While a request is being opened, `abort` cancels its task.

        The cancellation becomes the problem that `abort` was given.
        """
        task = asyncio.current_task()
        assert task is not None
        if (aborted := self._aborted) is not None:
            raise aborted
        self._opening.add(task)
        try:
            yield
        except asyncio.CancelledError:
            aborted = self._aborted
            if aborted is None:
                raise
            task.uncancel()
            raise aborted from None
        finally:
            self._opening.discard(task)

    async def _start(
        self, stack: contextlib.AsyncExitStack, start: _Start
    ) -> Generation:
        """Hand requests to the engine; `stack` ends what they leave."""
        start.check()
        mailbox = Mailbox(start.cancel)
        generation = Generation(
            request_id=start.engine_ids[0],
            served=start.served,
            created=int(time.time()),
            _mailbox=mailbox,
            _choices=start.choices(),
            _engine_ids=start.engine_ids,
            _choices_per_prompt=len(start.groups[0]),
            _settings=self._settings,
            _metrics=self._metrics,
            left_out=start.left_out,
        )
        await self._hand_over(start, mailbox)
        await stack.enter_async_context(generation)
        self._open.add(generation)
        stack.callback(self._open.discard, generation)
        if start.has_grammar:
            await generation.accepted()
        return generation

    async def _hand_over(self, start: _Start, mailbox: Mailbox) -> None:
        """Start the requests on a worker, since an engine may keep it waiting."""
        is_abandoned = threading.Event()

        def hand_over() -> None:
            offset = 0
            for group in start.groups:
                sink = self._switchboard.sink(mailbox, offset)
                start.served.client.start(group, sink)
                offset += len(group)
            if is_abandoned.is_set():  # the caller went while we were at it
                start.cancel()

        try:
            await self._workers.run(
                hand_over, self._settings.prepare_timeout_s, "starting the request"
            )
        except BaseException:
            is_abandoned.set()
            start.cancel()
            self._metrics.refused(start.served.name)
            raise


def _with_own_sampling(
    served: Served, call: ChatCall | TextCall
) -> ChatCall | TextCall:
    """The call with the model's own sampling where its caller stated none."""
    if call.stated is None:
        return call
    params = served.sampling.applied(call.params, call.stated)
    return replace(call, params=params)


def _groups(
    prepared: Prepared, request_id: str, priority: int, adapter: str | None
) -> list[list[Request]]:
    """The choices of each prompt, in the engine's terms."""
    groups = []
    pairs = zip(prepared.prompts, prepared.params, strict=True)
    for number, (prompt, params) in enumerate(pairs):
        group_id = f"{request_id}-{number}" if number else request_id
        group = make_requests(
            prompt,
            params,
            request_id=group_id,
            priority=priority,
            grammar=prepared.grammar,
            kept_special=prepared.kept_special,
            num_shared=prepared.num_shared,
            adapter=adapter,
        )
        groups.append(group)
    return groups
