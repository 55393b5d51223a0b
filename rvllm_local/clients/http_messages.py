"""What crosses between `HttpClient` and a server, as JSON: one request's choices there, events back.

The fields are those of `Request` and `SamplingParams`; a field that is unknown is an
error, not ignored. Knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec

from rvllm_local.engine.limits import EngineLimits
from rvllm_local.errors import ParameterError
from rvllm_local.types import MAX_CHOICES, Request, SamplingParams, StreamEvent

GENERATE, READ, LOAD, REQUESTS = (
    "/v1/engine/generate",
    "/v1/engine/read",
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


class ReadInput(_Strict):
    """A text, or a pair of which the second text begins at `second_at`."""

    token_ids: list[int]
    second_at: int = 0


class ReadRequest(_Strict):
    """POST /v1/engine/read: texts for a model that reads alone.

    `request_id` is the caller's. The vectors that come back are base64 of float32.
    """

    most_numbers: ClassVar[int] = 4_000_000

    request_id: str
    inputs: list[ReadInput]
    model: str = "default"
    priority: int = 0


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


def encode_read(requests: Sequence[Request], model: str) -> ReadRequest:
    """The texts of one request, as they are sent."""
    inputs = []
    for request in requests:
        token_ids = list(request.prompt_token_ids)
        inputs.append(ReadInput(token_ids=token_ids, second_at=request.second_at))
    first = requests[0]
    return ReadRequest(
        request_id=first.request_id,
        inputs=inputs,
        model=model,
        priority=first.priority,
    )


def decode_read(message: ReadRequest) -> list[Request]:
    """The texts that were sent. Raises `ParameterError`."""
    _check_id(message.request_id)
    params = SamplingParams(max_tokens=1, temperature=0)
    requests = []
    for index, row in enumerate(message.inputs):
        if not 0 <= row.second_at <= len(row.token_ids):
            raise ParameterError(
                f"inputs[{index}].second_at",
                f"inputs[{index}].second_at must be from 0 to {len(row.token_ids)}, "
                f"not {row.second_at}",
            )
        request = Request(
            message.request_id,
            tuple(row.token_ids),
            params,
            seed=0,
            index=index,
            priority=message.priority,
            is_read=True,
            second_at=row.second_at,
        )
        requests.append(request)
    return requests


def decode(message: GenerateRequest) -> list[Request]:
    """The choices that were sent. Raises `ParameterError`."""
    if not 1 <= len(message.seeds) <= MAX_CHOICES or not all(
        0 <= seed < 2**64 for seed in message.seeds
    ):
        raise ParameterError(
            "seeds",
            f"seeds must hold 1 to {MAX_CHOICES} numbers of 64 bits, one a choice",
        )
    _check_id(message.request_id)
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


def _check_id(request_id: str) -> None:
    letters = request_id.replace("-", "").replace("_", "")
    if not 1 <= len(request_id) <= 128 or not letters.isalnum():
        raise ParameterError(
            "request_id", "request_id must be 1 to 128 letters, digits, '-' or '_'"
        )


def token_id(text: str) -> int:
    """A key of `logit_bias`. Raises `ParameterError`."""
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise ParameterError(
            "logit_bias", 'the keys of logit_bias must be token ids, like "1234"'
        )
    return int(text)
