"""What crosses between a server and a process that inspects models' files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from rvllm_local.conversation.prompt_frames import OfModel, Refused
from rvllm_local.models.own_sampling import OwnSampling
from rvllm_local.options import EngineOptions

IDLE_S = 20.0  # after which a process that has nothing to do ends
What = Literal["planned", "context_length", "facts"]


class Inspect(OfModel, frozen=True):
    """What to read, and what reading it may take.

    `what` names the field of the answer.
    """

    options: EngineOptions
    what: What
    cpu_s: float
    wall_s: float
    num_bytes: int


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Sizes, form and abilities. `parameters` is 0 where nothing tells their number.

    `size` is bytes of the weights, `modified` seconds of the epoch. `digest` changes
    with the files' names, sizes and times; their contents are not read. `settings` are
    the numbers of the configuration. `pools` is what a model that writes no text makes
    of one: vectors ("embed") or scores ("score").
    """

    kind: str
    architecture: str
    quantization: str
    parameters: int
    size: int
    modified: float
    digest: str
    context_length: int
    settings: Mapping[str, Any]
    chat_template: str | None
    license: str
    calls_tools: bool
    thinks: bool
    pools: str = ""


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
    facts: ModelFacts | None = None
    refused: Refused | None = None


INSPECT = msgspec.msgpack.Decoder(Inspect)
INSPECTED = msgspec.msgpack.Decoder(Inspected)
