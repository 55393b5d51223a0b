"""Has a served model read texts or pairs, and gives what it made of them.

Many texts are read in groups, shortest first: none is so large that the event loop or
the engine would keep streams waiting, and each is told how quick these are.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rvllm_local.conversation.pooled import (
    checked_count,
    checked_pools,
    read_requests,
)
from rvllm_local.engine.limits import Pools
from rvllm_local.errors import error_of
from rvllm_local.server.api.common import new_id
from rvllm_local.server.api.service import Service
from rvllm_local.server.http.problems import problem_of
from rvllm_local.server.models.served_model import Served
from rvllm_local.text.read_inputs import EncodedInput, Input
from rvllm_local.types import StreamEvent

_ENCODED_AT_ONCE = 1024  # texts
_FIRST_GROUP, _SMALLEST_GROUP, _LARGEST_GROUP = 64, 16, 256
_GROUP_S = 0.25  # after which streams are looked at again


@dataclass(frozen=True, slots=True)
class Read:
    """The engine's bytes for each input, and how many tokens all had."""

    parts: Sequence[bytes]
    num_tokens: int


def pools_of(served: Served, kind: str) -> Pools:
    """The pooling of a served model. Raises `ParameterError` if it does other things."""
    return checked_pools(served.client.limits.pools, kind)


async def read_texts(
    service: Service,
    served: Served,
    inputs: Sequence[Input],
    most_tokens: int | None,
) -> Read:
    """Read texts or pairs; with `most_tokens`, long ones are cut to as many."""
    checked_count(len(inputs), "input")
    within_s = service.settings.prepare_timeout_s
    encoded: list[EncodedInput] = []
    for start in range(0, len(inputs), _ENCODED_AT_ONCE):
        some = inputs[start : start + _ENCODED_AT_ONCE]
        encoded.extend(await served.prompts.encode(some, most_tokens, within_s))
    return await read_tokens(service, served, encoded)


async def read_tokens(
    service: Service, served: Served, encoded: Sequence[EncodedInput]
) -> Read:
    """Read what is in tokens already. Raises `Problem`."""
    checked_count(len(encoded), "input")
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index].token_ids))
    parts = [b""] * len(encoded)
    num_done, size = 0, _FIRST_GROUP
    while num_done < len(order):
        indices = order[num_done : num_done + size]
        began = time.monotonic()
        read = await _read_group(service, served, [encoded[index] for index in indices])
        for index, part in zip(indices, read, strict=True):
            parts[index] = part
        num_done += len(indices)
        size = _next_size(len(indices), time.monotonic() - began)
    num_tokens = sum(len(row.token_ids) for row in encoded)
    return Read(parts, num_tokens)


def _next_size(size: int, seconds: float) -> int:
    """Texts that take about `_GROUP_S`, if `size` of them took `seconds`."""
    fitting = int(size * _GROUP_S / max(seconds, 1e-3))
    return min(max(fitting, _SMALLEST_GROUP), _LARGEST_GROUP)


async def _read_group(
    service: Service, served: Served, encoded: Sequence[EncodedInput]
) -> list[bytes]:
    """The engine's bytes for each input, in their order."""
    gap_s = service.generator.shortest_gap_s
    requests = read_requests(encoded, new_id("embd-"), gap_s)
    parts = [b""] * len(requests)
    opened = service.generator.open_tokens(served.name, requests)
    async with opened as generation:
        async for events in generation.token_events():
            for event in events:
                parts[event.index] = _part_of(event)
    return parts


def _part_of(event: StreamEvent) -> bytes:
    """What was made of a text. Raises `Problem` where nothing was."""
    if event.error is not None:
        error = error_of(event.error_kind, event.error)
        raise problem_of(error)
    return event.vector or b""
