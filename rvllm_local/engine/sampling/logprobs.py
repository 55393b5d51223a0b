"""Log-probabilities on their way out: from arrays of a batch to a record for each token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rvllm_local.engine.sampling.sampler import SampledTokens, Tokens
from rvllm_local.types import TokenLogprob


def token_logprobs(
    sampled: SampledTokens, tokens: Sequence[int], counts: Sequence[int | None]
) -> list[TokenLogprob | None]:
    """A record for each row that asked for one.

    `counts` holds how many alternatives a row asked for; None is no record at all.
    `tokens` may be longer than `counts`: what is behind the last row means nothing.
    """
    if sampled.chosen_logprobs is None:
        return [None] * len(counts)
    logprobs: list[float] = sampled.chosen_logprobs.tolist()  # type: ignore[assignment]
    ids = _rows_of(sampled.top_ids, len(tokens))
    values = _rows_of(sampled.top_logprobs, len(tokens))
    records: list[TokenLogprob | None] = []
    for row, count in enumerate(counts):
        record = None
        if count is not None:
            top = tuple(zip(ids[row][:count], values[row][:count], strict=True))
            record = TokenLogprob(tokens[row], logprobs[row], top)
        records.append(record)
    return records


def _rows_of(array: Tokens | None, num_rows: int) -> list[list[Any]]:
    """The array as lists; an empty list for each row where there is no array."""
    if array is None:
        return [[]] * num_rows
    rows: list[list[Any]] = array.tolist()  # type: ignore[assignment]
    return rows
