"""What crosses between a server and a process that inspects models' files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from rvllm_local.conversation.prompt_frames import Refused
from rvllm_local.models.locate import ModelFiles
from rvllm_local.models.own_sampling import OwnSampling
from rvllm_local.options import EngineOptions

IDLE_S = 20.0  # after which a process that has nothing to do ends


class Inspect(msgspec.Struct, frozen=True):
    """What to read, and what reading it may take.

    With `plans` the answer is `Planned`, otherwise the model's context alone.
    """

    kind: Literal["folder", "gguf", "bundle"]
    path: str
    name: str
    options: EngineOptions
    plans: bool
    cpu_s: float
    wall_s: float
    num_bytes: int

    @property
    def files(self) -> ModelFiles:
        """The model's files."""
        return ModelFiles(self.kind, Path(self.path), self.name)


class Planned(msgspec.Struct, frozen=True):
    """Bytes that a model will take, of those that there are for models at all.

    `sampling` is what its makers recommend.
    """

    memory: int
    budget: int
    sampling: OwnSampling


class Inspected(msgspec.Struct, frozen=True):
    """The answer: what was asked for, or why it is not to be had."""

    planned: Planned | None = None
    context_length: int | None = None
    refused: Refused | None = None


INSPECT = msgspec.msgpack.Decoder(Inspect)
INSPECTED = msgspec.msgpack.Decoder(Inspected)
