"""Draws tokens on the host, from logits that a CPU computed.

With numpy, one row at a time, while it is in the cache. The rules and the noise are
those of `sampler`. Nothing sorts a vocabulary: bounds that cannot miss any of it find
what a filter can keep, and only that is sorted. Nor is all of the noise made: bounds
find the tokens that it can make the first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rvllm_local.engine.sampling.noise import HostNoise
from rvllm_local.engine.sampling.sampler import RowSampling, SampledTokens
from rvllm_local.types import SamplingParams

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

_COLUMNS = 1024  # groups of logits whose maxima bound the largest ones
_PER_COLUMN = 8  # fewer logits a group than this bound nothing
# The tokens with these shares of the mass are few, and mostly hold the nucleus.
_LIKELY = (1e-4, 1.5e-5)


def draw_on_host(
    logits: FloatArray, rows: Sequence[RowSampling] | None
) -> SampledTokens:
    """A token for each row of `logits` `[rows, vocab]`.

    Without `rows` the largest logit is taken.
    """
    if rows is None:
        return SampledTokens(logits.argmax(axis=-1))
    return draw(logits, rows)


def draw(logits: FloatArray, rows: Sequence[RowSampling]) -> SampledTokens:
    """A token for each row of `logits` `[rows, vocab]`.

    Log-probabilities are the model's, before any edit.
    """
    noise = HostNoise([(row.seed, row.position) for row in rows], logits.shape[1])
    drawn = []
    for index, row in enumerate(rows):
        drawn.append(_token(logits[index], row, noise, index))
    return _with_logprobs(logits, rows, np.array(drawn, dtype=np.int64))


def _with_logprobs(
    logits: FloatArray,
    rows: Sequence[RowSampling],
    tokens: IntArray,
) -> SampledTokens:
    most = -1
    for row in rows:
        if row.params.logprobs is not None:
            most = max(most, row.params.logprobs)
    if most < 0:
        return SampledTokens(tokens)
    most = min(most, logits.shape[1])
    logprobs = np.zeros(len(rows), dtype=np.float32)
    ids = np.zeros((len(rows), most), dtype=np.int64)
    values = np.zeros((len(rows), most), dtype=np.float32)
    for index, row in enumerate(rows):
        if row.params.logprobs is None:
            continue
        line = logits[index]
        largest_logit = line.max()
        normalizer = largest_logit + np.log(_weights(line, largest_logit, 1.0).sum())
        logprobs[index] = line[tokens[index]] - normalizer
        count = min(row.params.logprobs, most)
        if count:
            top = _best(line, count)
            ids[index, :count] = top
            values[index, :count] = line[top] - normalizer
    if not most:
        return SampledTokens(tokens, logprobs)
    return SampledTokens(tokens, logprobs, ids, values)


def _token(
    logits: FloatArray,
    row: RowSampling,
    noise: HostNoise,
    index: int,
) -> int:
    if row.history is not None or row.allowed is not None:
        logits = _edited(logits, row)
    best = int(logits.argmax())
    params = row.params
    if params.is_greedy or not np.isfinite(logits[best]):
        return best
    if params.has_filters:
        tokens, weights = _kept(logits, logits[best], params)
        if len(tokens) == 1:
            return best
        token, _ = noise.row(index).first_of(tokens, weights)
        return token
    return noise.row(index).first(logits, best, params.temperature)


def _edited(logits: FloatArray, row: RowSampling) -> FloatArray:
    logits = logits.copy()
    if row.history is not None:
        row.history.edits().apply(logits)
    if row.allowed is not None:
        allowed_bytes = row.allowed.view(np.uint8)
        bits = np.unpackbits(allowed_bytes, count=len(logits), bitorder="little")
        logits[bits == 0] = -np.inf
    return logits


def _kept(
    logits: FloatArray,
    best: np.float32,
    params: SamplingParams,
) -> tuple[IntArray, FloatArray]:
    """The tokens that the filters keep, and their weights.

    Tokens are in the vocabulary's order. Weights are in units of the largest. Ties at a
    filter's edge are all kept.
    """
    least = params.min_p
    top_p = params.top_p
    temperature = params.temperature
    if 0 < params.top_k < len(logits):
        tokens = largest(logits, params.top_k)
        weights = _weights(logits[tokens], best, temperature)
        if top_p < 1:
            heaviest = np.sort(weights)[::-1][: params.top_k]
            mass = top_p * float(heaviest.sum())
            least = max(least, _nucleus_edge(heaviest, mass))
    elif top_p < 1:
        weights = _weights(logits, best, temperature)
        tokens, weights, edge = _nucleus(weights, top_p)
        least = max(least, edge)
    else:
        edge_logit = best + np.float32(temperature * np.log(least))
        tokens = np.flatnonzero(logits >= edge_logit)
        return tokens, _weights(logits[tokens], best, temperature)
    if least > 0:
        is_kept = weights >= least
        tokens = tokens[is_kept]
        weights = weights[is_kept]
    return tokens, weights


def _weights(
    logits: FloatArray,
    best: np.float32,
    temperature: float,
) -> FloatArray:
    weights = logits - best
    if temperature != 1.0:
        weights *= np.float32(1 / temperature)
    np.exp(weights, out=weights)
    return weights


def _nucleus(weights: FloatArray, top_p: float) -> tuple[IntArray, FloatArray, float]:
    """Tokens with the whole nucleus among them, their weights, its smallest weight."""
    total = float(weights.sum())
    target = top_p * total
    # Tokens below the last bound have less than 1 - top_p of the mass together: none is
    # in the nucleus.
    last_bound = (1 - top_p) / len(weights)
    for bound in (*_LIKELY, last_bound):
        tokens = np.flatnonzero(weights >= np.float32(total * bound))
        likely = weights[tokens]
        if likely.sum() >= target:
            break
    descending = np.sort(likely)[::-1]
    return tokens, likely, _nucleus_edge(descending, target)


def _nucleus_edge(descending: FloatArray, target: float) -> float:
    """The smallest weight of the nucleus.

    Tokens are in it while those above them have less than the target together.
    """
    mass = descending.cumsum(dtype=np.float64)
    index = int(mass.searchsorted(target, side="left"))
    last = min(index, len(mass) - 1)
    return float(descending[last])


def largest(values: FloatArray, count: int) -> IntArray:
    """The indices of the `count` largest values and of all that equal the last of them.

    They are in ascending order.
    """
    size = len(values)
    columns = max(_COLUMNS, 4 * count)
    if size < _PER_COLUMN * columns:
        edge = np.partition(values, size - count)[size - count]
        return np.flatnonzero(values >= edge)
    # The count-th largest maximum of any groups is at most the count-th largest value.
    num_grouped = size // columns * columns
    maxima = values[:num_grouped].reshape(-1, columns).max(axis=0)
    rank = columns - count
    bound = np.partition(maxima, rank)[rank]
    indices = np.flatnonzero(values >= bound)
    candidates = values[indices]
    rank = len(candidates) - count
    edge = np.partition(candidates, rank)[rank]
    kept: IntArray = indices[candidates >= edge]
    return kept


def _best(values: FloatArray, count: int) -> IntArray:
    """The indices of the `count` largest values, best first; ties by index."""
    indices = largest(values, count)
    order = np.argsort(-values[indices], kind="stable")
    best: IntArray = indices[order][:count]
    return best
