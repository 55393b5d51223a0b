"""Has a served model read texts or pairs, and gives what it made of them."""

from __future__ import annotations

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
    encoded = await served.prompts.encode(inputs, most_tokens, within_s)
    return await read_tokens(service, served, encoded)


async def read_tokens(
    service: Service, served: Served, encoded: Sequence[EncodedInput]
) -> Read:
    """Read what is in tokens already. Raises `Problem`."""
    checked_count(len(encoded), "input")
    requests = read_requests(encoded, new_id("embd-"))
    parts = [b""] * len(requests)
    opened = service.generator.open_tokens(served.name, requests)
    async with opened as generation:
        async for events in generation.token_events():
            for event in events:
                parts[event.index] = _part_of(event)
    num_tokens = 0
    for request in requests:
        num_tokens += len(request.prompt_token_ids)
    return Read(parts, num_tokens)


def _part_of(event: StreamEvent) -> bytes:
    """What was made of a text. Raises `Problem` where nothing was."""
    if event.error is not None:
        error = error_of(event.error_kind, event.error)
        raise problem_of(error)
    return event.vector or b""
