"""The bodies of requests for vectors and for ranks."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from rvllm_local.server.api.common import Strict


class EmbeddingsRequest(Strict, kw_only=True):
    """POST /v1/embeddings: texts, or the token ids of texts.

    `input_type` names a prompt of the model's that goes before each text, as "query" or
    "document". With `truncate`, texts that are too long are cut.
    """

    most_numbers: ClassVar[int] = 4_000_000  # more than a body has room for

    model: str | None = None
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None
    input_type: str | None = None
    truncate: bool | None = None


class Document(Strict):
    """A document with its text."""

    text: str


class RerankRequest(Strict, kw_only=True):
    """POST /v1/rerank and /v2/rerank: documents to put in the order of their relevance.

    The fields are Cohere's and Jina's. A document that is too long is cut.
    """

    model: str | None = None
    query: str
    documents: list[str | Document]
    top_n: int | None = None
    return_documents: bool | None = None
    max_tokens_per_doc: int | None = None
    priority: int | None = None
    user: str | None = None


# Fields that are known and cannot be honoured: values at which they ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {"priority": (0,)}
