"""Log-probabilities: of drawn tokens, and of tokens that are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from rvllm_local.engine.sampling.sampler import SampledTokens, Tokens
from rvllm_local.types import TokenLogprob


class TargetLogprobs(NamedTuple):
    """Log-probabilities of given tokens, and of the best alternatives, best first."""

    logprobs: npt.NDArray[np.float32]  # [tokens]
    top_ids: npt.NDArray[np.int32]  # [tokens, alternatives]
    top_logprobs: npt.NDArray[np.float32]  # [tokens, alternatives]

    def rows(self, start: int, end: int) -> TargetLogprobs:
        """A copy of the tokens from `start` to `end`."""
        return TargetLogprobs(
            self.logprobs[start:end].copy(),
            self.top_ids[start:end].copy(),
            self.top_logprobs[start:end].copy(),
        )


def target_logprobs(
    logits: mx.array,
    targets: Sequence[int],
    num_top: int,
) -> TargetLogprobs:
    """How likely each target is after its row of `logits` `[tokens, vocab]`."""
    logits = logits.astype(mx.float32)
    normalizers = mx.logsumexp(logits, axis=-1, keepdims=True)
    target_ids = mx.array(list(targets))
    target_logits = mx.take_along_axis(logits, target_ids[:, None], axis=-1)
    parts = [target_logits - normalizers]
    if num_top:
        ids = mx.argpartition(-logits, kth=num_top - 1, axis=-1)
        ids = ids[:, :num_top]
        values = mx.take_along_axis(logits, ids, axis=-1)
        values = values - normalizers
        order = mx.argsort(-values, axis=-1)
        parts.append(mx.take_along_axis(ids, order, axis=-1))
        parts.append(mx.take_along_axis(values, order, axis=-1))
    mx.eval(*parts)
    arrays = [np.array(part) for part in parts]
    if not num_top:
        arrays += [np.zeros((len(targets), 0))] * 2
    logprobs, top_ids, top_logprobs = arrays
    return TargetLogprobs(
        logprobs[:, 0],
        top_ids.astype(np.int32),
        top_logprobs.astype(np.float32),
    )


def token_logprobs(
    sampled: SampledTokens,
    tokens: Sequence[int],
    counts: Sequence[int | None],
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
            top = zip(ids[row][:count], values[row][:count], strict=True)
            record = token_logprob(tokens[row], logprobs[row], tuple(top))
        records.append(record)
    return records


def token_logprob(
    token_id: int,
    logprob: float,
    top: tuple[tuple[int, float], ...],
) -> TokenLogprob:
    """A record whose alternatives, where any are wanted, include the token itself."""
    is_listed = any(other == token_id for other, _ in top)
    if top and not is_listed:
        top = (*top, (token_id, logprob))
    return TokenLogprob(token_id, logprob, top)


def _rows_of(array: Tokens | None, num_rows: int) -> list[list[Any]]:
    """The array as lists; an empty list for each row where there is no array."""
    if array is None:
        return [[]] * num_rows
    rows: list[list[Any]] = array.tolist()  # type: ignore[assignment]
    return rows
