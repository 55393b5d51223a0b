"""Routes for the tokens of a text or of a conversation, and the text of tokens."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rvllm_local.conversation.calls import ChatCall
from rvllm_local.conversation.model import ConversationModel
from rvllm_local.conversation.prompts import prepare_chat
from rvllm_local.conversation.reading import Reading
from rvllm_local.conversation.requests import read_messages
from rvllm_local.conversation.schema import ChatMessage
from rvllm_local.server.api.common import Strict
from rvllm_local.server.api.service import Service
from rvllm_local.server.http.problems import bad_request
from rvllm_local.server.http.replies import JSONReply
from rvllm_local.server.models.served_model import Served
from rvllm_local.text.tokenizer import Tokenizer
from rvllm_local.types import SamplingParams


class TokenizeRequest(Strict):
    """POST /tokenize: a text, or messages through the chat template."""

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
        ids = await service.workers.run(
            lambda: _token_ids(served.conversation, body, reading),
            service.settings.prepare_timeout_s,
            "tokenizing",
        )
        length = served.client.limits.context_length
        return JSONReply({"tokens": ids, "count": len(ids), "max_model_len": length})


def _token_ids(
    model: ConversationModel, body: TokenizeRequest, reading: Reading
) -> list[int]:
    if body.prompt is not None:
        return model.tokenizer.encode(body.prompt, bos=body.add_special_tokens)
    messages = read_messages(body.messages or [], reading)
    call = ChatCall(body.model, messages, SamplingParams(max_tokens=1))
    return list(prepare_chat(model, call).prompts[0])


def _info(served: Served) -> dict[str, Any]:
    """What evaluation harnesses ask about a tokenizer, under the names they use."""
    tokenizer = served.tokenizer
    ends = served.client.limits.eos_token_ids
    return {
        "model": served.name,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "vocab_size": tokenizer.vocab_size,
        "bos_token": _special(tokenizer, tokenizer.bos_token_id),
        "eos_token": _special(tokenizer, ends[0] if ends else None),
        "pad_token": _special(tokenizer, ends[0] if ends else None),
        "add_bos_token": tokenizer.adds_bos,
        "chat_template": tokenizer.chat_template,
        "max_model_len": served.client.limits.context_length,
    }


def _special(tokenizer: Tokenizer, token_id: int | None) -> str | None:
    if token_id is None:
        return None
    return tokenizer.decode([token_id], skip_special=False)


async def _detokenize(service: Service, body: DetokenizeRequest) -> Response:
    async with service.registry.lease(body.model) as served:
        size = served.client.limits.vocab_size
        for token in body.tokens:
            if not 0 <= token < size:
                raise bad_request(
                    f"token id {token} is outside the vocabulary of {size}", "tokens"
                )
        decode = served.tokenizer.decode
        text = await service.workers.run(
            lambda: decode(body.tokens, skip_special=body.skip_special_tokens),
            service.settings.prepare_timeout_s,
            "detokenizing",
        )
        return JSONReply({"prompt": text})
