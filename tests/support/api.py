"""A server in a thread of the tests, over a tiny engine in this process or one that only pretends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from rvllm_local.clients.contract import Client, make_requests, open_stream
from rvllm_local.clients.in_process import InProcessClient
from rvllm_local.clients.stream import TokenStream
from rvllm_local.engine.limits import EngineLimits
from rvllm_local.engine.loop import EngineLoop
from rvllm_local.engine.startup.open import open_any_core
from rvllm_local.memory.plan import MemoryPlan
from rvllm_local.models.locate import ModelFiles
from rvllm_local.models.own_sampling import own_sampling
from rvllm_local.options import EngineOptions
from rvllm_local.server.app import Server, running
from rvllm_local.server.http.settings import ServerSettings
from rvllm_local.server.listener import Listener, bound
from rvllm_local.server.models.context import context_of
from rvllm_local.server.models.facts import model_facts
from rvllm_local.server.models.inspection_frames import ModelFacts, Planned
from rvllm_local.server.models.registry import Registry
from rvllm_local.server.models.served_model import Opener, Openers, PromptsOpener
from rvllm_local.text.grammar.compiled import Grammars
from rvllm_local.text.tokenizer_files import read_tokenizer
from rvllm_local.types import (
    BlockCounts,
    EngineSnapshot,
    EventSink,
    FinishReason,
    Request,
    RequestReport,
    SamplingParams,
    StreamEvent,
)
from tests.support.prompts_here import PromptsHere

OPTIONS = EngineOptions(
    kv_memory=6_000_000, max_rows=4, prefill_chunk=64, max_waiting=8
)
CHAT = {
    "model": "default",
    "messages": [{"role": "user", "content": "x"}],
    "max_tokens": 4,
}


def open_here(files: ModelFiles, options: EngineOptions) -> Client:
    """An engine in a thread of this process."""
    tokenizer = read_tokenizer(files)
    loop = EngineLoop(lambda: open_any_core(files, tokenizer, options))
    limits = loop.call(lambda core: core.limits)
    return InProcessClient(
        loop, limits, Grammars(tokenizer, limits.vocab_size, limits.eos_token_ids)
    )


class PacedClient:
    """Pretends to be an engine: every choice says `word` every `pace_s`, until its length or its end.

    While `may_speak` is clear, it says nothing.
    """

    def __init__(self, pace_s: float = 0.01, word: str = "la ") -> None:
        self.limits = EngineLimits(384, 100_000, 100_000, (0,))
        self.pace_s, self.word = pace_s, word
        self.open: dict[str, threading.Event] = {}
        self.may_speak = threading.Event()
        self.may_speak.set()
        self.is_closed = False

    def start(self, requests: Sequence[Request], sink: EventSink) -> None:
        for request in requests:
            self.limits.check(request)
        stop = self.open[requests[0].request_id] = threading.Event()
        for request in requests:
            threading.Thread(
                target=self._say, args=(request, sink, stop), daemon=True
            ).start()

    def _say(self, request: Request, sink: EventSink, stop: threading.Event) -> None:
        for number in range(request.params.max_tokens):
            is_over = stop.wait(self.pace_s)
            while not is_over and not self.may_speak.is_set():
                is_over = stop.wait(self.pace_s)
            if is_over:
                sink(StreamEvent("", (), FinishReason.CANCELLED, index=request.index))
                break
            is_last = number + 1 == request.params.max_tokens
            sink(
                StreamEvent(
                    self.word,
                    (5,),
                    FinishReason.LENGTH if is_last else None,
                    index=request.index,
                )
            )
        self.open.pop(request.request_id, None)

    def submit(
        self, prompt_token_ids: Sequence[int], params: SamplingParams
    ) -> TokenStream:
        return open_stream(self, make_requests(prompt_token_ids, params))

    def cancel(self, request_id: str) -> None:
        if request_id in self.open:
            self.open[request_id].set()

    def stats(self) -> dict[str, int | float | str]:
        return {"requests_running": len(self.open)}

    def snapshot(self) -> EngineSnapshot:
        return EngineSnapshot(BlockCounts(0, 0, 0, 0, 0, 0), "", (), self.stats(), {})

    def explain(self, request_id: str) -> tuple[RequestReport, ...]:
        return ()

    def close(self) -> None:
        self.is_closed = True
        for stop in list(self.open.values()):
            stop.set()


@dataclass(frozen=True)
class InspectedHere:
    """`Inspection` in this process; `sizes` are the plans' totals by name.

    A model without one takes so little that it always fits.
    """

    sizes: Mapping[str, int] = field(default_factory=dict)
    budget: int = 10**12

    def plan(self, files: ModelFiles, options: EngineOptions) -> Planned:
        size = self.sizes.get(files.name, 1000)
        plan = plan_of(size, self.budget)
        plan.check()
        return Planned(plan.total, plan.budget, own_sampling(files))

    def context_length(self, files: ModelFiles, options: EngineOptions) -> int | None:
        return context_of(files, options)

    def facts(self, files: ModelFiles) -> ModelFacts | None:
        return model_facts(files)

    def close(self) -> None:
        pass


def plan_of(size: int, budget: int = 10**12) -> MemoryPlan:
    """A plan of `size` bytes on a machine with `budget` for plans."""
    return MemoryPlan(size, 0, 0, 0, budget, 0, 2048, 4, 1, 1, 100)


@dataclass
class Running:
    """A server that listens on `port` of the loopback."""

    server: Server
    listener: Listener
    loop: asyncio.AbstractEventLoop
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}", timeout=240
        )

    @property
    def port(self) -> int:
        return self.listener.port

    @property
    def engine(self) -> Any:
        """The engine client of the model that is loaded."""
        return self.server.registry.loaded()[0].client

    def post(
        self, body: Mapping[str, Any], path: str = "/v1/chat/completions", **more: Any
    ) -> httpx.Response:
        return self.client.post(path, json=body, **more)

    def raw(self, data: bytes, *, wait_s: float = 60.0) -> bytes:
        """Send bytes on a socket of their own, and read until the server closes it or is silent."""
        with self.connect() as connection:
            connection.settimeout(wait_s)
            connection.sendall(data)
            return read_all(connection)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def eventually(self, condition: Any, within_s: float = 120.0) -> None:
        """Fail unless the condition holds soon; an answer to `LONG` takes longer."""
        until = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < until, f"not so within {within_s} s"
            time.sleep(0.005)


def read_all(connection: socket.socket) -> bytes:
    """What comes until the end, a reset or the socket's timeout."""
    parts = []
    with contextlib.suppress(TimeoutError, ConnectionError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


@contextlib.contextmanager
def served(
    models: Mapping[str, Path],
    settings: ServerSettings | None = None,
    *,
    opener: Opener = open_here,
    prompts: PromptsOpener = PromptsHere,
    options: EngineOptions = OPTIONS,
    **registry: Any,
) -> Iterator[Running]:
    """Run a server over model folders by name; the first is the default."""
    ready, found = threading.Event(), []
    settings = settings or ServerSettings(port=0)

    async def main() -> None:
        available = {
            name: ModelFiles("folder", path, name) for name, path in models.items()
        }
        made = Registry(
            available,
            next(iter(models)),
            options,
            openers=Openers(opener, prompts),
            inspection=InspectedHere(),
            **registry,
        )
        async with running(made, settings) as server:
            listener = Listener(server)
            with bound(settings) as listening:
                task = asyncio.create_task(listener.serve(listening))
                while not listener.started:
                    await asyncio.sleep(0.001)
                found.append(Running(server, listener, asyncio.get_running_loop()))
                ready.set()
                await task

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert ready.wait(120)
    try:
        yield found[0]
    finally:
        found[0].client.close()
        for _ in range(2):
            with contextlib.suppress(RuntimeError):
                found[0].loop.call_soon_threadsafe(found[0].listener.stop)
        thread.join(60)
