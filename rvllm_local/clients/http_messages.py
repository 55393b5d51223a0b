"""What crosses between `HttpClient` and a server, as JSON: one request's choices there, events back.

The fields are those of `Request` and `SamplingParams`; a field that is unknown is an
error, not ignored. Knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from rvllm_local.engine.limits import EngineLimits
from rvllm_local.errors import ParameterError
from rvllm_local.types import MAX_CHOICES, Request, SamplingParams, StreamEvent

GENERATE, LOAD, REQUESTS = (
    "/v1/engine/generate",
    "/v1/engine/load",
    "/v1/engine/requests",
)
_MAX_KEPT = 64


class _Strict(
    msgspec.Struct, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """An object of which every field is known."""


class TokenParams(_Strict):
    """`SamplingParams`, but for the seed and the number of choices, which `seeds` give."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop: list[str] = []
    logprobs: int | None = None
    logit_bias: dict[str, float] = {}
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    ignore_eos: bool = False
    prompt_logprobs: int | None = None
    stop_token_ids: list[int] = []
    min_tokens: int = 0


class GenerateRequest(_Strict):
    """POST /v1/engine/generate: the choices of one request, a seed of 64 bits each.

    `request_id` is the caller's.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: TokenParams
    seeds: list[int]
    model: str = "default"
    priority: int = 0
    grammar: str | None = None
    kept_special: list[str] = []


class LoadRequest(_Strict):
    """POST /v1/engine/load: have a model loaded."""

    model: str = "default"


class Loaded(msgspec.Struct, frozen=True):
    """A model that is ready, by the name under which it is known, and what its requests must respect."""

    model: str
    limits: EngineLimits


class Events(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message of a stream: events in order, or the error that ended all choices, in OpenAI's shape."""

    events: tuple[StreamEvent, ...] = ()
    error: dict[str, Any] | None = None


def encode(requests: Sequence[Request], model: str) -> GenerateRequest:
    """The choices of one request, as they are sent."""
    first, params = requests[0], requests[0].params
    if first.is_read:
        raise ParameterError(
            "model",
            "a model that reads texts alone is asked over a server's /v1/embeddings and "
            "/v1/rerank; load it here, or ask those",
        )
    names = (
        name
        for name in TokenParams.__struct_fields__
        if name not in ("stop", "logit_bias")
    )
    biases = {str(token): bias for token, bias in params.logit_bias.items()}
    return GenerateRequest(
        request_id=first.request_id,
        prompt_token_ids=list(first.prompt_token_ids),
        params=TokenParams(
            stop=list(params.stop_strings),
            logit_bias=biases,
            **{name: getattr(params, name) for name in names},
        ),
        seeds=[request.seed for request in requests],
        model=model,
        priority=first.priority,
        grammar=first.grammar,
        kept_special=list(first.kept_special),
    )


def decode(message: GenerateRequest) -> list[Request]:
    """The choices that were sent. Raises `ParameterError`."""
    if not 1 <= len(message.seeds) <= MAX_CHOICES or not all(
        0 <= seed < 2**64 for seed in message.seeds
    ):
        raise ParameterError(
            "seeds",
            f"seeds must hold 1 to {MAX_CHOICES} numbers of 64 bits, one a choice",
        )
    if (
        not 1 <= len(message.request_id) <= 128
        or not message.request_id.replace("-", "").replace("_", "").isalnum()
    ):
        raise ParameterError(
            "request_id", "request_id must be 1 to 128 letters, digits, '-' or '_'"
        )
    if len(message.kept_special) > _MAX_KEPT:
        raise ParameterError(
            "kept_special",
            f"kept_special holds {len(message.kept_special)} texts, not up to {_MAX_KEPT}",
        )
    given = msgspec.structs.asdict(message.params)
    given["logit_bias"] = {
        token_id(token): bias for token, bias in message.params.logit_bias.items()
    }
    params = SamplingParams(n=len(message.seeds), **given)
    prompt, kept = tuple(message.prompt_token_ids), tuple(message.kept_special)
    return [
        Request(
            message.request_id,
            prompt,
            params,
            seed,
            index,
            message.priority,
            message.grammar,
            kept,
        )
        for index, seed in enumerate(message.seeds)
    ]


def token_id(text: str) -> int:
    """A key of `logit_bias`. Raises `ParameterError`."""
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise ParameterError(
            "logit_bias", 'the keys of logit_bias must be token ids, like "1234"'
        )
    return int(text)
