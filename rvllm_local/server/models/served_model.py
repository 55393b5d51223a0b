"""One model that is being served: its engine, its tokenizer, and how it writes calls and thoughts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from rvllm_local.clients.contract import Client
from rvllm_local.clients.process.client import EngineHealth, ProcessClient
from rvllm_local.conversation.model import ConversationModel, detect_style
from rvllm_local.models.locate import ModelFiles
from rvllm_local.models.own_sampling import OwnSampling, own_sampling
from rvllm_local.options import EngineOptions
from rvllm_local.text.families import OutputStyle
from rvllm_local.text.tokenizer import Tokenizer
from rvllm_local.text.tokenizer_files import read_tokenizer

Opener = Callable[[ModelFiles, EngineOptions], Client]


@dataclass(frozen=True, slots=True)
class Served:
    """A model that is ready. `memory` is its plan's total in bytes."""

    name: str
    client: Client
    tokenizer: Tokenizer
    style: OutputStyle
    memory: int
    loaded_at: float  # seconds of the epoch
    sampling: OwnSampling = field(default_factory=OwnSampling)
    adapter: str | None = (
        None  # the LoRA adapter that answers, where the name is an adapter's
    )

    @property
    def conversation(self) -> ConversationModel:
        """What prompts are made with."""
        return ConversationModel(
            self.name, self.tokenizer, self.style, self.client.limits
        )


def open_process(files: ModelFiles, options: EngineOptions) -> Client:
    """An engine in a process of its own, ready to serve."""
    return ProcessClient(str(files.path), options)


def open_served(
    files: ModelFiles,
    name: str,
    options: EngineOptions,
    memory: int,
    opener: Opener,
    now: float,
) -> Served:
    """Load a model. Takes seconds: not for the event loop. Raises what reading and loading raise."""
    tokenizer = read_tokenizer(files)
    return Served(
        name,
        opener(files, options),
        tokenizer,
        detect_style(files, tokenizer),
        memory,
        now,
        own_sampling(files),
    )


def health_of(client: Client) -> EngineHealth | None:
    """What the engine's supervision says; None for an engine in this process."""
    return client.health() if isinstance(client, ProcessClient) else None
