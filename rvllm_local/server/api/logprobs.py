"""Log-probabilities in the shape of chat completions, which two dialects send."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rvllm_local.server.models.served_model import Served
from rvllm_local.text.token_table import TokenTable
from rvllm_local.types import TokenLogprob

_LEAST_LOGPROB = -9999.0  # JSON knows no infinity


def finite(logprob: float) -> float:
    """A log-probability that JSON can hold."""
    return max(logprob, _LEAST_LOGPROB)


def token_text(tokens: TokenTable, token_id: int) -> str:
    """The text of one token, special or not; a part of a character by its bytes."""
    text = tokens.decode([token_id], skip_special=False)
    if "\ufffd" not in text:
        return text
    spelled = tokens.id_to_bytes(token_id)
    if spelled is None:
        return text
    escapes = [f"\\x{byte:02x}" for byte in spelled]
    return "bytes:" + "".join(escapes)


def chat_logprobs(
    logprobs: Sequence[TokenLogprob], served: Served
) -> list[dict[str, Any]]:
    """Drawn tokens, each with its alternatives, best first.

    The token that ends an answer is no part of its content.
    """
    tokens = served.tokens
    ends = served.client.limits.eos_token_ids
    rows = []
    for drawn in logprobs:
        if drawn.token_id in ends and not tokens.decode([drawn.token_id]):
            continue
        alternatives = []
        for token_id, logprob in drawn.top:
            alternatives.append(_token(tokens, token_id, logprob))
        row = _token(tokens, drawn.token_id, drawn.logprob)
        row["top_logprobs"] = alternatives
        rows.append(row)
    return rows


def _token(tokens: TokenTable, token_id: int, logprob: float) -> dict[str, Any]:
    row: dict[str, Any] = {
        "token": token_text(tokens, token_id),
        "logprob": finite(logprob),
        "bytes": None,
    }
    spelled = tokens.id_to_bytes(token_id)
    if spelled is not None:
        row["bytes"] = list(spelled)
    return row
