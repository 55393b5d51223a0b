"""OpenAI's chat completions and completions: answers and streams, in that API's shapes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from rvllm_local.conversation.calls import ChatCall, Delta, Ended, TextCall, Usage
from rvllm_local.errors import error_of
from rvllm_local.server.api.openai.requests import chat_call, text_call
from rvllm_local.server.api.openai.schema import ChatRequest, Sampling, TextRequest
from rvllm_local.server.api.service import Service, new_id
from rvllm_local.server.generation.generation import Generation
from rvllm_local.server.http.problems import Problem, bad_request, problem_of
from rvllm_local.server.http.replies import (
    EventStream,
    JSONReply,
    event,
    while_connected,
)
from rvllm_local.text.tokenizer import Tokenizer
from rvllm_local.text.tools import (
    ContentDelta,
    Piece,
    ReasoningDelta,
    ToolCallDelta,
    ToolCallStart,
)
from rvllm_local.types import FinishReason, TokenLogprob

DONE = b"data: [DONE]\n\n"
LEAST_LOGPROB = -9999.0  # JSON knows no infinity
BODIES: dict[str, type[Sampling]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": TextRequest,
}


def routes(service: Service) -> list[Route]:
    """The routes of this dialect."""

    async def chat(request: Request) -> Response | ASGIApp:
        asked = await service.read(request, ChatRequest)
        call = await service.run(
            request, lambda: chat_call(asked), "reading the messages"
        )
        return await _answer(service, request, asked, call, _ChatShape())

    async def text(request: Request) -> Response | ASGIApp:
        asked = await service.read(request, TextRequest)
        call = await service.run(
            request, lambda: text_call(asked), "reading the prompts"
        )
        return await _answer(
            service, request, asked, call, _TextShape(_echoes(asked, call))
        )

    return [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", text, methods=["POST"]),
    ]


async def _answer(
    service: Service,
    request: Request,
    asked: Sampling,
    call: ChatCall | TextCall,
    shape: _ChatShape | _TextShape,
) -> Response | ASGIApp:
    if asked.stream_options is not None and not asked.stream:
        raise bad_request("stream_options needs stream to be true", "stream_options")
    request_id = new_id(shape.prefix)
    if not asked.stream:
        return await while_connected(request, _whole(service, call, request_id, shape))
    wants_usage = (
        asked.stream_options is not None and asked.stream_options.include_usage
    )
    return EventStream(
        _events(service, call, request_id, shape, wants_usage),
        lambda problem: event(problem.openai()),
    )


@dataclass(slots=True)
class _Gathered:
    """One choice as it is put together."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    ended: Ended | None = None

    def take(self, outcome: Delta | Ended) -> None:
        if isinstance(outcome, Ended):
            self.ended = outcome
            return
        self.logprobs.extend(outcome.logprobs)
        for piece in outcome.pieces:
            match piece:
                case ContentDelta(text):
                    self.text.append(text)
                case ReasoningDelta(text):
                    self.reasoning.append(text)
                case ToolCallStart(_, call_id, name):
                    self.calls.append(
                        {
                            "id": call_id,
                            "type": "function",
                            "function": {"name": name, "arguments": ""},
                        }
                    )
                case ToolCallDelta(_, arguments):
                    self.calls[-1]["function"]["arguments"] += arguments


async def gather(generation: Generation) -> list[_Gathered]:
    """All choices, whole. Raises `Problem` for one that failed."""
    choices = [_Gathered() for _ in range(generation.num_choices)]
    async for outcomes in generation.outcomes():
        for outcome in outcomes:
            if isinstance(outcome, Ended):
                raise_failed(outcome)
            choices[outcome.index].take(outcome)
    return choices


def raise_failed(ended: Ended) -> None:
    """Raise the `Problem` of a choice that did not end well."""
    if ended.error is not None:
        raise problem_of(error_of(ended.error_kind, ended.error, ended.error_parameter))
    if ended.reason is FinishReason.CANCELLED:
        raise Problem(503, "the request was cancelled", "cancelled")


async def _whole(
    service: Service,
    call: ChatCall | TextCall,
    request_id: str,
    shape: _ChatShape | _TextShape,
) -> Response:
    async with service.generator.open(call, request_id) as generation:
        choices = await gather(generation)
        tokenizer = generation.served.tokenizer
        return JSONReply(
            {
                **_head(generation, shape.kind),
                "choices": [
                    shape.choice(index, choice, tokenizer)
                    for index, choice in enumerate(choices)
                ],
                "usage": usage_of(generation.usage),
            }
        )


async def _events(
    service: Service,
    call: ChatCall | TextCall,
    request_id: str,
    shape: _ChatShape | _TextShape,
    wants_usage: bool,
) -> AsyncIterator[bytes]:
    async with service.generator.open(call, request_id) as generation:
        head = _head(generation, shape.stream_kind)
        # One rendering of what all chunks share.
        prefix = json.dumps(head)[:-1]
        extra = ', "usage": null' if wants_usage else ""

        def chunk(choices: Sequence[dict[str, Any]]) -> bytes:
            return f'data: {prefix}, "choices": {json.dumps(choices, allow_nan=False)}{extra}}}\n\n'.encode()

        tokenizer = generation.served.tokenizer
        yield b"".join(
            chunk([first]) for first in shape.opening(generation.num_choices, tokenizer)
        )
        async for outcomes in generation.outcomes():
            parts: list[bytes] = []
            for outcome in outcomes:
                if isinstance(outcome, Ended):
                    raise_failed(outcome)
                parts.extend(
                    chunk([choice]) for choice in shape.chunks(outcome, tokenizer)
                )
            if parts or not outcomes:
                yield b"".join(parts)
        if wants_usage:
            yield event({**head, "choices": [], "usage": usage_of(generation.usage)})
        yield DONE


def _head(generation: Generation, kind: str) -> dict[str, Any]:
    return {
        "id": generation.request_id,
        "object": kind,
        "created": generation.created,
        "model": generation.model,
        "system_fingerprint": None,
    }


def usage_of(usage: Usage) -> dict[str, Any]:
    """Token counts in OpenAI's shape."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


class _ChatShape:
    """Choices of a chat completion."""

    prefix, kind, stream_kind = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def choice(
        self, index: int, found: _Gathered, tokenizer: Tokenizer
    ) -> dict[str, Any]:
        assert found.ended is not None
        text, reasoning = "".join(found.text), "".join(found.reasoning)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": text if text or not found.calls else None,
        }
        message["refusal"] = None
        if reasoning:
            message["reasoning_content"] = reasoning
        if found.calls:
            message["tool_calls"] = found.calls
        logprobs = chat_logprobs(found.logprobs, tokenizer)
        return {
            "index": index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": finish_reason(found.ended),
        }

    def opening(self, num_choices: int, tokenizer: Tokenizer) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": ""}
        return [self._chunk(index, delta) for index in range(num_choices)]

    def chunks(
        self, outcome: Delta | Ended, tokenizer: Tokenizer
    ) -> list[dict[str, Any]]:
        if isinstance(outcome, Ended):
            return [self._chunk(outcome.index, {}, finish_reason(outcome))]
        deltas = [
            delta
            for piece in outcome.pieces
            if (delta := _chat_delta(piece)) is not None
        ]
        chunks = [self._chunk(outcome.index, delta) for delta in deltas or [{}]]
        if outcome.logprobs:
            chunks[0]["logprobs"] = chat_logprobs(outcome.logprobs, tokenizer)
        elif not deltas:
            return []
        return chunks

    @staticmethod
    def _chunk(
        index: int, delta: dict[str, Any], reason: str | None = None
    ) -> dict[str, Any]:
        return {
            "index": index,
            "delta": delta,
            "logprobs": None,
            "finish_reason": reason,
        }


def _chat_delta(piece: Piece) -> dict[str, Any] | None:
    match piece:
        case ContentDelta(text):
            return {"content": text}
        case ReasoningDelta(text):
            return {"reasoning_content": text}
        case ToolCallStart(index, call_id, name):
            function = {"name": name, "arguments": ""}
            return {
                "tool_calls": [
                    {
                        "index": index,
                        "id": call_id,
                        "type": "function",
                        "function": function,
                    }
                ]
            }
        case ToolCallDelta(index, arguments):
            return {
                "tool_calls": [{"index": index, "function": {"arguments": arguments}}]
            }
        case _:
            return None


class _TextShape:
    """Choices of a completion; `echo` gives the prompt's text of a choice, to stand before its own."""

    prefix, kind, stream_kind = "cmpl-", "text_completion", "text_completion"

    def __init__(self, echo: Callable[[int], str | tuple[int, ...]] | None) -> None:
        self._echo = echo
        self._offsets: dict[int, int] = {}

    def choice(
        self, index: int, found: _Gathered, tokenizer: Tokenizer
    ) -> dict[str, Any]:
        assert found.ended is not None
        text = self._prompt(index, tokenizer) + "".join(found.text)
        logprobs = self._logprobs(index, found.logprobs, tokenizer)
        return {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": finish_reason(found.ended),
        }

    def opening(self, num_choices: int, tokenizer: Tokenizer) -> list[dict[str, Any]]:
        return [
            self._chunk(index, self._prompt(index, tokenizer))
            for index in range(num_choices)
        ]

    def chunks(
        self, outcome: Delta | Ended, tokenizer: Tokenizer
    ) -> list[dict[str, Any]]:
        if isinstance(outcome, Ended):
            return [self._chunk(outcome.index, "", finish_reason(outcome))]
        text = "".join(
            piece.text for piece in outcome.pieces if isinstance(piece, ContentDelta)
        )
        found = self._chunk(outcome.index, text)
        found["logprobs"] = self._logprobs(outcome.index, outcome.logprobs, tokenizer)
        return [found]

    def _prompt(self, index: int, tokenizer: Tokenizer) -> str:
        if self._echo is None:
            return ""
        prompt = self._echo(index)
        return (
            prompt
            if isinstance(prompt, str)
            else tokenizer.decode(prompt, skip_special=False)
        )

    def _logprobs(
        self, index: int, logprobs: Sequence[TokenLogprob], tokenizer: Tokenizer
    ) -> dict[str, Any] | None:
        """OpenAI's older shape: lists side by side, with each token's offset in the text."""
        if not logprobs:
            return None
        texts = [token_text(tokenizer, one.token_id) for one in logprobs]
        offsets, offset = [], self._offsets.get(index, 0)
        for text in texts:
            offsets.append(offset)
            offset += len(text)
        self._offsets[index] = offset
        return {
            "tokens": texts,
            "token_logprobs": [max(one.logprob, LEAST_LOGPROB) for one in logprobs],
            "top_logprobs": [_top(tokenizer, one) for one in logprobs],
            "text_offset": offsets,
        }

    @staticmethod
    def _chunk(index: int, text: str, reason: str | None = None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}


def _echoes(
    asked: TextRequest, call: TextCall
) -> Callable[[int], str | tuple[int, ...]] | None:
    if not asked.echo:
        return None
    return lambda index: call.prompts[index // call.params.n]


def finish_reason(ended: Ended) -> str:
    """OpenAI's word for why a choice ended."""
    return (
        "tool_calls"
        if ended.made_calls and ended.reason is FinishReason.STOP
        else str(ended.reason)
    )


def chat_logprobs(
    logprobs: Sequence[TokenLogprob], tokenizer: Tokenizer
) -> dict[str, Any] | None:
    """The chosen tokens with their alternatives, in the shape of chat completions."""
    if not logprobs:
        return None
    content = []
    for one in logprobs:
        top = [_token(tokenizer, token, value) for token, value in one.top]
        content.append(
            {**_token(tokenizer, one.token_id, one.logprob), "top_logprobs": top}
        )
    return {"content": content, "refusal": None}


def _top(tokenizer: Tokenizer, one: TokenLogprob) -> dict[str, float]:
    return {
        token_text(tokenizer, token): max(value, LEAST_LOGPROB)
        for token, value in one.top
    }


def _token(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    spelled = tokenizer.id_to_bytes(token_id)
    return {
        "token": token_text(tokenizer, token_id),
        "logprob": max(logprob, LEAST_LOGPROB),
        "bytes": None if spelled is None else list(spelled),
    }


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """The text of one token, special or not."""
    return tokenizer.decode([token_id], skip_special=False)
