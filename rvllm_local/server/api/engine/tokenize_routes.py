"""Routes for the tokens of a text or of a conversation, and the text of tokens."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rvllm_local.conversation.calls import ChatCall
from rvllm_local.conversation.prompt_frames import TokenIds
from rvllm_local.conversation.reading import Reading
from rvllm_local.conversation.requests import read_messages
from rvllm_local.conversation.schema import ChatMessage
from rvllm_local.server.api.common import Strict
from rvllm_local.server.api.service import Service
from rvllm_local.server.http.problems import bad_request
from rvllm_local.server.http.replies import JSONReply
from rvllm_local.server.models.served_model import Served
from rvllm_local.types import SamplingParams


class TokenizeRequest(Strict):
    """POST /tokenize: a text, or messages through the chat template.

    As in /v1/completions, special tokens that are written in a text count as tokens.
    """

    model: str = "default"
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool = True


class DetokenizeRequest(Strict, kw_only=True):
    """POST /detokenize."""

    model: str = "default"
    tokens: list[int]
    skip_special_tokens: bool = False


BODIES: dict[str, type[Strict]] = {
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}


def routes(service: Service) -> list[Route]:
    """The routes of the tokenizer."""

    async def tokenize(request: Request) -> Response:
        body = await service.read(request, TokenizeRequest)
        return await _tokenize(service, body, service.reading(request))

    async def detokenize(request: Request) -> Response:
        body = await service.read(request, DetokenizeRequest)
        return await _detokenize(service, body)

    async def tokenizer_info(request: Request) -> Response:
        model = request.query_params.get("model", "default")
        async with service.registry.lease(model) as served:
            return JSONReply(_info(served))

    return [
        Route("/tokenizer_info", tokenizer_info, methods=["GET"]),
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
    ]


async def _tokenize(
    service: Service, body: TokenizeRequest, reading: Reading
) -> Response:
    if (body.prompt is None) == (body.messages is None):
        raise bad_request("give either prompt or messages", "prompt")
    async with service.registry.lease(body.model) as served:
        ids = await _token_ids(service, served, body, reading)
        length = served.client.limits.context_length
        counts = f'"count": {ids.count}, "max_model_len": {length}'
        body_bytes = b'{"tokens": %s, %s}' % (ids.json, counts.encode())
        return Response(body_bytes, media_type=JSONReply.media_type)


async def _token_ids(
    service: Service, served: Served, body: TokenizeRequest, reading: Reading
) -> TokenIds:
    within_s = service.settings.prepare_timeout_s
    if body.prompt is not None:
        return await served.prompts.tokenize(
            body.prompt, body.add_special_tokens, within_s
        )
    messages = read_messages(body.messages or [], reading)
    call = ChatCall(body.model, messages, SamplingParams(max_tokens=1))
    prepared = await served.prompts.prepare(call, served.client.limits, within_s)
    return TokenIds.of(prepared.prompts[0])


def _info(served: Served) -> dict[str, Any]:
    """What evaluation harnesses ask about a tokenizer, under the names they use."""
    facts = served.facts
    ends = served.client.limits.eos_token_ids
    return {
        "model": served.name,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "vocab_size": facts.vocab_size,
        "bos_token": _special(served, facts.bos_token_id),
        "eos_token": _special(served, ends[0] if ends else None),
        "pad_token": _special(served, ends[0] if ends else None),
        "add_bos_token": facts.adds_bos,
        "chat_template": facts.chat_template,
        "max_model_len": served.client.limits.context_length,
    }


def _special(served: Served, token_id: int | None) -> str | None:
    if token_id is None:
        return None
    return served.tokens.decode([token_id], skip_special=False)


async def _detokenize(service: Service, body: DetokenizeRequest) -> Response:
    async with service.registry.lease(body.model) as served:
        size = served.client.limits.vocab_size
        for token in body.tokens:
            if not 0 <= token < size:
                raise bad_request(
                    f"token id {token} is outside the vocabulary of {size}", "tokens"
                )
        decode = served.tokens.decode
        text = await service.workers.run(
            lambda: decode(body.tokens, skip_special=body.skip_special_tokens),
            service.settings.prepare_timeout_s,
            "detokenizing",
        )
        return JSONReply({"prompt": text})
