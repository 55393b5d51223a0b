"""One model that is being served: its engine, and what makes its prompts."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from rvllm_local.child_start import Spare
from rvllm_local.clients.contract import Client
from rvllm_local.clients.process.client import EngineHealth, ProcessClient
from rvllm_local.conversation.prompt_frames import TextFacts
from rvllm_local.models.locate import ModelFiles
from rvllm_local.models.own_sampling import OwnSampling
from rvllm_local.options import EngineOptions
from rvllm_local.server.http.byte_budget import ByteBudget
from rvllm_local.server.models.inspection_frames import Planned
from rvllm_local.server.prompts.process import PromptProcess, Prompts
from rvllm_local.server.prompts.proven import TextProof
from rvllm_local.text.token_table import TokenTable

Opener = Callable[[ModelFiles, EngineOptions], Client]
PromptsOpener = Callable[[ModelFiles, ByteBudget], Prompts]


@dataclass(frozen=True, slots=True)
class Served:
    """A model that is ready. `memory` is its plan's total in bytes."""

    name: str
    client: Client
    prompts: Prompts
    memory: int
    loaded_at: float  # seconds of the epoch
    sampling: OwnSampling = field(default_factory=OwnSampling)
    # The LoRA adapter that answers, where the name is an adapter's.
    adapter: str | None = None

    @property
    def facts(self) -> TextFacts:
        """What is known of its tokenizer."""
        return self.prompts.facts

    @property
    def tokens(self) -> TokenTable:
        """What each of its tokens stands for."""
        return self.prompts.facts.tokens

    async def close(self) -> None:
        """End its engine and all of its processes, which may take an engine a while."""
        await asyncio.gather(asyncio.to_thread(self.client.close), self.prompts.close())


@dataclass(frozen=True, slots=True)
class Openers:
    """What starts the parts of a served model."""

    engine: Opener
    prompts: PromptsOpener


def open_process(
    files: ModelFiles, options: EngineOptions, spare: Spare | None = None
) -> Client:
    """An engine in a process of its own, ready to serve."""
    return ProcessClient(str(files.path), options, spare=spare)


OWN_PROCESSES = Openers(open_process, PromptProcess)


def with_spares(engine: Spare, prompts: Spare) -> Openers:
    """Own processes, of which the first ones were started before."""
    return Openers(
        functools.partial(open_process, spare=engine),
        functools.partial(PromptProcess, spare=prompts),
    )


def open_served(
    files: ModelFiles,
    name: str,
    planned: Planned,
    options: EngineOptions,
    openers: Openers,
    budget: ByteBudget,
) -> Served:
    """Load a model. Takes seconds: not for the event loop.

    The tokenizer is read first: what explodes there does so before memory is taken.
    One that was read before does not hold the engine up. Raises what reading and
    loading raise.
    """
    with ThreadPoolExecutor(1, "rvllm-engine") as beside:
        coming: Future[Client] | None = None
        if TextProof(files).is_known:
            coming = beside.submit(openers.engine, files, options)
        try:
            prompts = openers.prompts(files, budget)
        except BaseException:
            if coming is not None:
                _close_when_open(coming)
            raise
        try:
            if coming is None:
                client = openers.engine(files, options)
            else:
                client = coming.result()
        except BaseException:
            prompts.stop()
            raise
    return Served(name, client, prompts, planned.memory, time.time(), planned.sampling)


def _close_when_open(coming: Future[Client]) -> None:
    """Nobody will use this engine."""
    try:
        client = coming.result()
    except Exception:
        return  # the other error is told
    client.close()


def health_of(client: Client) -> EngineHealth | None:
    """What the engine's supervision says; None for an engine in this process."""
    return client.health() if isinstance(client, ProcessClient) else None
