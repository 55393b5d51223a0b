"""Routes for the tokens of a text or of a conversation, and the text of tokens."""

from __future__ import annotations

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

    return [
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
