"""What a model makes of texts that it reads alone: requests in, vectors and scores out."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rvllm_local.clients.contract import Client, open_stream
from rvllm_local.engine.limits import Pools
from rvllm_local.errors import ParameterError
from rvllm_local.text.read_inputs import EncodedInput, Input, encode_inputs
from rvllm_local.text.tokenizer import Tokenizer
from rvllm_local.types import Request, SamplingParams

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Vectors = npt.NDArray[np.float32]
MOST_INPUTS = 16_384  # of one request
# Other names under which clients ask for a model's prompts.
_SAME_PROMPT: Mapping[str, tuple[str, ...]] = {
    "query": (
        "query",
        "search_query",
        "Retrieval-query",
        "retrieval.query",
        "web_search_query",
    ),
    "document": (
        "document",
        "passage",
        "search_document",
        "Retrieval-document",
        "retrieval.passage",
    ),
}
_ONCE = SamplingParams(max_tokens=1, temperature=0)


def checked_pools(pools: Pools | None, kind: str) -> Pools:
    """The pooling of a model that does what is asked for. Raises `ParameterError`."""
    if pools is not None and pools.kind == kind:
        return pools
    missing = "scores of pairs; ask a reranking model"
    if kind == "embed":
        missing = "vectors; ask an embedding model"
    made = "writes text"
    if pools is not None:
        made = "makes vectors" if pools.kind == "embed" else "scores pairs"
    raise ParameterError("model", f"this model {made}, and makes no {missing}")


def checked_count(count: int, name: str) -> None:
    """Raise `ParameterError` for no inputs, or more than one request may have."""
    if not 1 <= count <= MOST_INPUTS:
        raise ParameterError(
            name, f"{name} has {count} entries; give from 1 to {MOST_INPUTS}"
        )


def prompt_named(pools: Pools, name: str | None) -> str:
    """The text that goes before each input, by a prompt's name or kind.

    A kind of input for which the model has no prompt gets none. Raises `ParameterError`
    for a name that is neither.
    """
    if name is None:
        return ""
    if name in pools.prompts:
        return pools.prompts[name]
    for kind, names in _SAME_PROMPT.items():
        if name != kind and name not in names:
            continue
        for other in names:
            if other in pools.prompts:
                return pools.prompts[other]
        return ""
    names_there = ", ".join(dict.fromkeys([*_SAME_PROMPT, *pools.prompts]))
    raise ParameterError(
        "input_type",
        f"input_type {name[:80]!r} is not known; give one of {names_there}",
    )


def read_requests(
    encoded: Iterable[EncodedInput],
    request_id: str | None = None,
    beside_s: float = 0.0,
) -> list[Request]:
    """A request for each input; they share an id, and their index is their place.

    `beside_s` is the time between the tokens of streams beside them.
    """
    made = request_id or uuid.uuid4().hex
    requests = []
    for index, row in enumerate(encoded):
        request = Request(
            made,
            row.token_ids,
            _ONCE,
            seed=0,
            index=index,
            is_read=True,
            second_at=row.second_at,
            beside_s=beside_s,
        )
        requests.append(request)
    return requests


def read_inputs(
    client: Client,
    tokenizer: Tokenizer,
    inputs: Sequence[Input],
    truncate: bool,
) -> list[bytes]:
    """What an engine makes of texts or pairs, in their order.

    Raises `ParameterError`, and what ends the request.
    """
    checked_count(len(inputs), "the input")
    most = client.limits.context_length if truncate else None
    requests = read_requests(encode_inputs(tokenizer, inputs, most))
    parts = [b""] * len(requests)
    with open_stream(client, requests) as stream:
        for event in stream:
            parts[event.index] = event.vector or b""
    return parts


def pairs(query: str, documents: Sequence[str], pools: Pools) -> list[Input]:
    """The pairs that are scored for a query, in the model's own form."""
    if pools.pair_form is None:
        return [(query, document) for document in documents]
    before, query_lead, document_lead, behind = pools.pair_form
    inputs: list[Input] = []
    for document in documents:
        pair = f"{query_lead}{query}{document_lead}{document}"
        inputs.append((before, pair, behind))
    return inputs


def vectors_of(
    parts: Sequence[bytes],
    dimensions: int | None,
    pools: Pools,
) -> Vectors:
    """Vectors `[inputs, dimensions]` from the engine's bytes.

    Fewer dimensions than the model's are the first ones, at length 1 again. Raises
    `ParameterError` for a number that the model cannot give.
    """
    import numpy as np  # late: a server of chats needs none

    check_dimensions(dimensions, pools)
    rows = [np.frombuffer(part, dtype="<f4") for part in parts]
    vectors = np.stack(rows).astype(np.float32)
    if dimensions is None or dimensions == pools.dimensions:
        return vectors
    shorter = vectors[:, :dimensions]
    lengths = np.linalg.norm(shorter, axis=1, keepdims=True)
    return np.asarray(shorter / np.maximum(lengths, 1e-12), dtype=np.float32)


def check_dimensions(dimensions: int | None, pools: Pools) -> None:
    """Raise `ParameterError` for dimensions that the model cannot give."""
    if dimensions is not None and not 1 <= dimensions <= pools.dimensions:
        raise ParameterError(
            "dimensions",
            f"dimensions is {dimensions}; this model's vectors have "
            f"{pools.dimensions}, give from 1 to as many",
        )


def relevance_of(parts: Sequence[bytes], pools: Pools) -> list[float]:
    """How relevant each document is, from 0 to 1.

    One label is a logit of relevance; of two the second is "relevant". Raises
    `ParameterError` for a model of more labels.
    """
    if pools.dimensions > 2:
        raise ParameterError(
            "model",
            f"this model sorts texts into {pools.dimensions} kinds, and scores no "
            "relevance; ask a reranking model",
        )
    import numpy as np

    scores = []
    for part in parts:
        logits = np.frombuffer(part, dtype="<f4").astype(np.float64)
        logit = logits[0] if len(logits) == 1 else logits[1] - logits[0]
        scores.append(float(1.0 / (1.0 + np.exp(-logit))))
    return scores


def best_first(scores: Sequence[float], most: int | None = None) -> list[int]:
    """The places of the highest scores, best first; of equal ones the earlier first."""
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    return order if most is None else order[:most]
