"""The sampler against plain numpy: filters keep the right tokens, draws follow the distribution, rows are alone."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from rvllm_local.engine.sampler import RowSampling, SamplingBatch, sample, uniform
from rvllm_local.errors import ParameterError
from rvllm_local.types import SamplingParams

VOCAB = 50
LOGITS = np.random.default_rng(0).normal(size=VOCAB).astype(np.float32) * 2


def draw(params: SamplingParams, position: int, row: np.ndarray = LOGITS, output: tuple[int, ...] = ()) -> int:
    batch = SamplingBatch.build([RowSampling(params, 9, position, (), output)], VOCAB)
    return int(sample(mx.array(row[None]), batch).tokens.item())


def allowed(params: SamplingParams) -> set[int]:
    """What a float64 reading of the parameters keeps."""
    logits = LOGITS.astype(np.float64) / params.temperature
    order = np.argsort(-logits)[: params.top_k or VOCAB]
    weights = np.exp(logits[order] - logits[order[0]])
    weights /= weights.sum()
    kept = order[: int(np.searchsorted(np.cumsum(weights), params.top_p - 1e-9) + 1)]
    return {int(token) for token in kept if logits[token] >= logits[order[0]] + np.log(params.min_p or 1e-300)}


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(top_k=3),
        SamplingParams(top_p=0.7),
        SamplingParams(min_p=0.2),
        SamplingParams(top_k=10, top_p=0.8, min_p=0.05, temperature=1.5),
        SamplingParams(top_p=1e-6),
        SamplingParams(top_k=1),
    ],
)
def test_filters_keep_exactly_what_they_should(params: SamplingParams) -> None:
    drawn = {draw(params, position) for position in range(400)}
    assert drawn <= allowed(params)
    assert len(drawn) >= 0.6 * len(allowed(params))


def test_draws_follow_the_distribution() -> None:
    count = 4000
    batch = SamplingBatch.build([RowSampling(SamplingParams(), 3, position) for position in range(count)], VOCAB)
    tokens = np.array(sample(mx.array(np.tile(LOGITS, (count, 1))), batch).tokens)
    expected = np.exp(LOGITS - LOGITS.max()) / np.exp(LOGITS - LOGITS.max()).sum() * count
    found = np.bincount(tokens, minlength=VOCAB)
    chi_square = float(((found - expected) ** 2 / expected).sum())
    assert chi_square < 100  # 49 degrees of freedom: 99.99 % lie below 95


def test_a_row_does_not_see_its_neighbours() -> None:
    rows = [
        SamplingParams(seed=1),
        SamplingParams(temperature=0, logprobs=2),
        SamplingParams(top_p=0.5),
        SamplingParams(min_p=0.1, logit_bias={4: 3.0}),
        SamplingParams(repetition_penalty=1.3, frequency_penalty=0.4),
    ]
    samplings = [RowSampling(params, 40 + index, 7, (1, 2), (3, 3)) for index, params in enumerate(rows)]
    logits = np.random.default_rng(1).normal(size=(len(rows), VOCAB)).astype(np.float32)
    together = sample(mx.array(logits), SamplingBatch.build(samplings, VOCAB)).tokens.tolist()
    alone = [
        sample(mx.array(logits[index : index + 1]), SamplingBatch.build([row], VOCAB)).tokens.item()
        for index, row in enumerate(samplings)
    ]
    assert together == alone


def test_penalties_and_bias_follow_their_formulas() -> None:
    flat = np.zeros(VOCAB, dtype=np.float32)
    flat[[5, 6, 7]] = 2.0, 1.9, 1.8
    greedy = {"temperature": 0}
    assert draw(SamplingParams(**greedy), 0, flat, (5,)) == 5
    assert draw(SamplingParams(**greedy, repetition_penalty=1.06), 0, flat, (5,)) == 6
    assert draw(SamplingParams(**greedy, presence_penalty=0.15), 0, flat, (5, 6)) == 5
    assert draw(SamplingParams(**greedy, frequency_penalty=0.06), 0, flat, (5, 5)) == 6
    assert draw(SamplingParams(**greedy, logit_bias={7: 0.5}), 0, flat) == 7


def test_uniform_numbers_are_the_same_on_every_machine() -> None:
    values = [uniform(seed, position) for seed in (0, 1, 2**64 - 1) for position in range(300)]
    assert all(0 <= value < 1 for value in values)
    assert len(set(values)) > 890
    assert abs(float(np.mean(values)) - 0.5) < 0.05


def test_bias_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ParameterError, match="50"):
        SamplingBatch.build([RowSampling(SamplingParams(logit_bias={50: 1.0}), 0, 0)], VOCAB)
