"""Draws one token a row, each row with its own parameters and its own seed.

Everything runs as MLX operations that the caller evaluates; `host_sampler` does
the same with numpy, where a CPU computes the logits. The noise of a row's tokens is a
hash of its seed and position (`engine.sampling.noise`), and every operation works along
a row, so a row's token does not depend on its neighbours.

Order, as in vLLM: bias, penalties, temperature, top-k, top-p, min-p, draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from rvllm_local.engine.sampling.noise import (
    PIECE,
    Words,
    noise_key,
    piece_noise,
    piece_sizes,
    token_noise,
)
from rvllm_local.engine.sampling.token_history import EditsAhead, TokenHistory
from rvllm_local.types import SamplingParams

Tokens = mx.array | npt.NDArray[Any]


class RowSampling(NamedTuple):
    """One row: its parameters, its seed, and the position of the token to be drawn.

    `history` is there for rows with biases or penalties. One is made for each token, as
    quickly as can be.
    """

    params: SamplingParams
    seed: int
    position: int
    history: TokenHistory | EditsAhead | None = None
    allowed: npt.NDArray[np.int32] | None = (
        None  # a grammar's mask: bit `i % 32` of word `i // 32` for token i
    )


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """The tokens of a step, and their log-probabilities where a row asks for them.

    `tokens` and log-probabilities are [rows], the best alternatives [rows, k], best
    first. They are numpy's arrays if the host drew them.
    """

    tokens: Tokens
    chosen_logprobs: Tokens | None = None
    top_ids: Tokens | None = None
    top_logprobs: Tokens | None = None

    def arrays(self) -> list[Tokens]:
        """Those that there are."""
        every = (self.tokens, self.chosen_logprobs, self.top_ids, self.top_logprobs)
        return [part for part in every if part is not None]


@dataclass(frozen=True, slots=True)
class LogitEdits:
    """Sparse edits of the logits: for each (row, token) once, `x -> scaled(x) + add`.

    Positive logits are divided by `repetition`, negative ones multiplied (the CTRL
    paper's rule).
    """

    rows: mx.array
    tokens: mx.array
    bias: mx.array
    repetition: mx.array
    subtract: mx.array


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """What `sample` needs, laid out by column. Built on the host for each step."""

    temperature: (
        mx.array | None
    )  # [rows, 1]; 1 for greedy rows; None when all rows are greedy
    is_greedy: mx.array | None  # [rows]; None when no row is
    keys: mx.array | None  # [rows, 2] uint32: of the rows' noise
    top_k: mx.array | None  # [rows, 1] >= 1; None when neither top-k nor top-p is used
    top_p: mx.array | None  # [rows, 1]
    log_min_p: mx.array | None  # [rows, 1]; -inf where unused
    edits: LogitEdits | None
    mask: mx.array | None  # [rows, vocab] bool; None when no row is bound by a grammar
    num_logprobs: (
        int | None
    )  # the most alternatives any row wants; None when no row wants log-probabilities

    @classmethod
    def build(cls, rows: Sequence[RowSampling], vocab_size: int) -> SamplingBatch:
        """Lay out a batch."""
        params = [row.params for row in rows]
        is_greedy = [row.is_greedy for row in params]
        counts = [p.logprobs for p in params if p.logprobs is not None]
        num_logprobs = min(max(counts), vocab_size) if counts else None
        edits, mask = _edits(rows), _mask(rows, vocab_size)
        if all(is_greedy):
            nothing = (None,) * 6
            return cls(*nothing, edits, mask, num_logprobs)
        top_k, top_p = _filters(params, vocab_size)
        return cls(
            _column([1.0 if p.is_greedy else p.temperature for p in params]),
            mx.array(is_greedy) if any(is_greedy) else None,
            _keys(rows),
            top_k,
            top_p,
            _log_min_p(params),
            edits,
            mask,
            num_logprobs,
        )


def _filters(
    params: Sequence[SamplingParams], vocab_size: int
) -> tuple[mx.array | None, mx.array | None]:
    """Columns of top-k and top-p; None twice if no row that draws uses either."""
    top_k, top_p, is_used = [], [], False
    for row in params:
        limits_k = 0 < row.top_k < vocab_size and not row.is_greedy
        limits_p = row.top_p < 1 and not row.is_greedy
        top_k.append(row.top_k if limits_k else vocab_size)
        top_p.append(row.top_p if limits_p else 1.0)
        is_used = is_used or limits_k or limits_p
    if not is_used:
        return None, None
    return mx.array(np.array(top_k, dtype=np.int32)[:, None]), _column(top_p)


def _log_min_p(params: Sequence[SamplingParams]) -> mx.array | None:
    """A column of logarithms; None if no row that draws has a min-p."""
    logarithms = []
    for row in params:
        is_used = row.min_p > 0 and not row.is_greedy
        logarithms.append(np.log(row.min_p) if is_used else -np.inf)
    return None if max(logarithms) == -np.inf else _column(logarithms)


def _keys(rows: Sequence[RowSampling]) -> mx.array:
    keys = [noise_key(row.seed, row.position) for row in rows]
    return mx.array(np.array(keys, dtype=np.uint32))


def sample_rows(logits: mx.array, rows: Sequence[RowSampling] | None) -> SampledTokens:
    """A token for each row of `logits`; the most likely ones without `rows`."""
    if rows is None:
        return SampledTokens(mx.argmax(logits, axis=-1))
    return sample(logits, SamplingBatch.build(rows, logits.shape[-1]))


def sample(logits: mx.array, batch: SamplingBatch) -> SampledTokens:
    """Draw a token for each row of `logits` `[rows, vocab]`. Nothing is evaluated here.

    Log-probabilities are those of the model, before any edit.
    """
    logits = logits.astype(mx.float32)
    edited = logits if batch.edits is None else _apply_edits(logits, batch.edits)
    if batch.mask is not None:
        edited = mx.where(batch.mask, edited, -mx.inf)
    tokens = (
        mx.argmax(edited, axis=-1)
        if batch.temperature is None
        else _draw(edited, batch)
    )
    if batch.num_logprobs is None:
        return SampledTokens(tokens)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    drawn = mx.take_along_axis(logprobs, tokens[:, None], axis=-1)[:, 0]
    if batch.num_logprobs == 0:
        return SampledTokens(tokens, drawn)
    ids = mx.argsort(-logprobs, axis=-1)[:, : batch.num_logprobs]
    values = mx.take_along_axis(logprobs, ids, axis=-1)
    return SampledTokens(tokens, drawn, ids, values)


def _draw(logits: mx.array, batch: SamplingBatch) -> mx.array:
    """The first token to come: the largest weight over its time."""
    assert batch.temperature is not None and batch.keys is not None
    scaled = logits / batch.temperature
    best = mx.max(scaled, axis=-1, keepdims=True)
    weights = mx.exp(scaled - best)
    threshold = _threshold(scaled, best, batch)
    if threshold is not None:
        weights = mx.where(scaled >= threshold, weights, 0.0)
    times = noise_times(batch.keys, logits.shape[-1])
    drawn = mx.argmax(weights / times, axis=-1)
    if batch.is_greedy is None:
        return drawn
    return mx.where(batch.is_greedy, mx.argmax(logits, axis=-1), drawn)


def noise_times(keys: mx.array, vocab_size: int) -> mx.array:
    """The times `[rows, vocab]` of all tokens, from the rows' keys."""
    words = Words(mx)
    sizes = mx.array(piece_sizes(vocab_size))
    pieces = mx.arange(sizes.size, dtype=mx.uint32)
    first, second = keys[:, :1], keys[:, 1:]
    least, least_tokens = piece_noise(words, first, second, pieces, sizes)
    tokens = mx.arange(vocab_size, dtype=mx.uint32)
    least = mx.repeat(least, PIECE, axis=1)[:, :vocab_size]
    least_tokens = mx.repeat(least_tokens, PIECE, axis=1)[:, :vocab_size]
    times: mx.array = token_noise(words, first, second, tokens, least, least_tokens)
    return times


def _threshold(
    scaled: mx.array,
    best: mx.array,
    batch: SamplingBatch,
) -> mx.array | None:
    """[rows, 1]: the smallest tempered logit that is kept.

    Ties at the threshold are all kept.
    """
    threshold = None if batch.log_min_p is None else best + batch.log_min_p
    if batch.top_k is None or batch.top_p is None:
        return threshold
    descending = -mx.sort(-scaled, axis=-1)
    rank = mx.arange(scaled.shape[-1])[None]
    weights = mx.where(rank < batch.top_k, mx.exp(descending - best), 0.0)
    before = mx.cumsum(weights, axis=-1) - weights  # mass of the tokens ranked above
    kept = (before < batch.top_p * mx.sum(weights, axis=-1, keepdims=True)) & (
        rank < batch.top_k
    )
    # A row that filters nothing keeps everything, whatever rounding did to its sums.
    count = mx.where(
        (batch.top_p >= 1.0),
        batch.top_k,
        mx.maximum(mx.sum(kept, axis=-1, keepdims=True), 1),
    )
    lowest = mx.take_along_axis(descending, count - 1, axis=-1)
    return lowest if threshold is None else mx.maximum(threshold, lowest)


def _apply_edits(logits: mx.array, edits: LogitEdits) -> mx.array:
    values = logits[edits.rows, edits.tokens] + edits.bias
    values = (
        mx.where(values > 0, values / edits.repetition, values * edits.repetition)
        - edits.subtract
    )
    edited = logits + 0.0  # a copy: indexing assigns in place
    edited[edits.rows, edits.tokens] = values
    return edited


def _mask(rows: Sequence[RowSampling], vocab_size: int) -> mx.array | None:
    """[rows, vocab] what each row's grammar allows; everything for rows without one."""
    if all(row.allowed is None for row in rows):
        return None
    mask = np.ones((len(rows), vocab_size), dtype=np.bool_)
    for index, row in enumerate(rows):
        if row.allowed is not None:
            bits = np.unpackbits(row.allowed.view(np.uint8), bitorder="little")
            mask[index] = bits[:vocab_size]
    return mx.array(mask)


def _edits(rows: Sequence[RowSampling]) -> LogitEdits | None:
    numbers, edits = [], []
    for index, row in enumerate(rows):
        of_row = None if row.history is None else row.history.edits()
        if of_row is not None and len(of_row.tokens):
            numbers.append(np.full(len(of_row.tokens), index, dtype=np.int32))
            edits.append(of_row)
    if not edits:
        return None
    tokens = np.concatenate([part.tokens for part in edits]).astype(np.int32)
    return LogitEdits(
        mx.array(np.concatenate(numbers)),
        mx.array(tokens),
        mx.array(np.concatenate([part.bias for part in edits])),
        mx.array(np.concatenate([part.repetition for part in edits])),
        mx.array(np.concatenate([part.subtract for part in edits])),
    )


def _column(values: Sequence[float]) -> mx.array:
    return mx.array(np.array(values, dtype=np.float32)[:, None])
