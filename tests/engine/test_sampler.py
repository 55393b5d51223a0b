"""Both samplers against plain numpy: filters keep the right tokens, draws follow the distribution, rows are alone."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from rvllm_local.engine.sampling import host_sampler
from rvllm_local.engine.sampling.sampler import (
    RowSampling,
    SampledTokens,
    SamplingBatch,
    sample,
    uniform,
)
from rvllm_local.engine.sampling.token_history import TokenHistory
from rvllm_local.errors import ParameterError
from rvllm_local.types import SamplingParams

VOCAB = 50
LOGITS = np.random.default_rng(0).normal(size=VOCAB).astype(np.float32) * 2
Draw = Callable[[np.ndarray, list[RowSampling]], SampledTokens]


def on_device(logits: np.ndarray, rows: list[RowSampling]) -> SampledTokens:
    return sample(mx.array(logits), SamplingBatch.build(rows, logits.shape[1]))


@pytest.fixture(params=[on_device, host_sampler.draw], ids=["device", "host"])
def sampler(request: pytest.FixtureRequest) -> Draw:
    return request.param


def row_of(
    params: SamplingParams,
    seed: int,
    position: int,
    output: tuple[int, ...] = (),
    prompt: tuple[int, ...] = (),
    vocab: int = VOCAB,
) -> RowSampling:
    history = TokenHistory.of(params, prompt, vocab)
    for token in output if history is not None else ():
        history.push(token)
    return RowSampling(params, seed, position, history)


def draw(
    sampler: Draw,
    params: SamplingParams,
    position: int,
    row: np.ndarray = LOGITS,
    output: tuple[int, ...] = (),
) -> int:
    return int(sampler(row[None], [row_of(params, 9, position, output)]).tokens.item())


def kept(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """What a float64 reading of the parameters keeps, most likely first."""
    tempered = logits.astype(np.float64) / params.temperature
    order = np.argsort(-tempered, kind="stable")[: params.top_k or len(logits)]
    weights = np.exp(tempered[order] - tempered[order[0]])
    above = np.cumsum(weights) - weights
    order = order[above < params.top_p * weights.sum() * (1 - 1e-12)]
    return order[tempered[order] >= tempered[order[0]] + np.log(params.min_p or 1e-300)]


FILTERS = [
    SamplingParams(top_k=3),
    SamplingParams(top_p=0.7),
    SamplingParams(min_p=0.2),
    SamplingParams(top_k=10, top_p=0.8, min_p=0.05, temperature=1.5),
    SamplingParams(top_p=1e-6),
    SamplingParams(top_k=1),
    SamplingParams(top_p=0.95, min_p=0.01, temperature=0.6),
]


@pytest.mark.parametrize("params", FILTERS)
def test_filters_keep_exactly_what_they_should(
    sampler: Draw, params: SamplingParams
) -> None:
    drawn = {draw(sampler, params, position) for position in range(400)}
    allowed = {int(token) for token in kept(LOGITS, params)}
    assert drawn <= allowed
    assert len(drawn) >= 0.6 * len(allowed)


@pytest.mark.parametrize("temperature", [1e-7, 1e-40, 1e-300])
@pytest.mark.parametrize(
    "filters",
    [{}, {"top_p": 0.9}, {"top_k": 5, "min_p": 0.1}, {"top_k": 5, "top_p": 0.5}],
)
def test_the_coldest_temperatures_are_greedy(
    sampler: Draw, temperature: float, filters: dict[str, float]
) -> None:
    params = SamplingParams(temperature=temperature, **filters)  # type: ignore[arg-type]
    assert draw(sampler, params, 0) == int(LOGITS.argmax())


def test_draws_follow_the_distribution(sampler: Draw) -> None:
    count = 4000
    rows = [RowSampling(SamplingParams(), 3, position) for position in range(count)]
    tokens = np.array(sampler(np.tile(LOGITS, (count, 1)), rows).tokens)
    expected = (
        np.exp(LOGITS - LOGITS.max()) / np.exp(LOGITS - LOGITS.max()).sum() * count
    )
    found = np.bincount(tokens, minlength=VOCAB)
    chi_square = float(((found - expected) ** 2 / expected).sum())
    assert chi_square < 100  # 49 degrees of freedom: 99.99 % lie below 95


@pytest.mark.parametrize("spread", [0.0, 0.02, 1.0, 4.0, 30.0])
@pytest.mark.parametrize(
    "params",
    [
        *FILTERS,
        SamplingParams(top_p=0.9999),
        SamplingParams(top_k=700),
        SamplingParams(),
    ],
)
def test_the_host_finds_in_a_large_vocabulary_what_float64_does(
    params: SamplingParams, spread: float
) -> None:
    """Flat, steep and tied logits: the nucleus may be a token or nearly all of them."""
    size = 20_011
    logits = (np.random.default_rng(1).normal(size=size) * spread).astype(np.float32)
    order = np.sort(kept(logits, params))
    tempered = logits.astype(np.float64) / params.temperature
    weights = np.exp(tempered - tempered.max())
    edge = logits[order].min()
    for position in range(60):
        token = int(
            host_sampler.draw(logits[None], [RowSampling(params, 9, position)]).tokens[
                0
            ]
        )
        # Ties, and what differs from the edge by a rounding, may be kept too; sums of many round by more than one token.
        assert logits[token] >= edge - 1e-5 * max(1.0, abs(edge)) - (
            1e-3 * spread if params.top_p < 1 else 0
        )
        support = order if spread else np.arange(size)  # of equal ones all are kept
        place = int(np.searchsorted(support, token))
        mass = np.cumsum(weights[support]) / weights[support].sum()
        below, chance = mass[place - 1] if place else 0.0, uniform(9, position)
        assert below - 3e-3 <= chance <= mass[min(place, len(mass) - 1)] + 3e-3


@pytest.mark.parametrize(
    "params", [*FILTERS, SamplingParams(), SamplingParams(temperature=0.3)]
)
def test_host_and_device_draw_the_same_tokens(params: SamplingParams) -> None:
    logits = np.random.default_rng(4).normal(size=(64, 3000)).astype(np.float32) * 3
    rows = [row_of(params, seed, 5, vocab=3000) for seed in range(64)]
    assert (
        host_sampler.draw(logits, rows).tokens.tolist()
        == on_device(logits, rows).tokens.tolist()
    )


def test_a_row_does_not_see_its_neighbours(sampler: Draw) -> None:
    params = [
        SamplingParams(seed=1),
        SamplingParams(temperature=0, logprobs=2),
        SamplingParams(top_p=0.5),
        SamplingParams(min_p=0.1, logit_bias={4: 3.0}),
        SamplingParams(repetition_penalty=1.3, frequency_penalty=0.4),
    ]
    rows = [
        row_of(one, 40 + index, 7, (3, 3), (1, 2)) for index, one in enumerate(params)
    ]
    logits = np.random.default_rng(1).normal(size=(len(rows), VOCAB)).astype(np.float32)
    together = sampler(logits, rows).tokens.tolist()
    alone = [
        sampler(logits[index : index + 1], [row]).tokens.item()
        for index, row in enumerate(rows)
    ]
    assert together == alone


def test_a_grammars_mask_is_obeyed_and_padding_bits_are_not_read(sampler: Draw) -> None:
    bits = np.zeros(64, dtype=np.uint8)
    bits[[7, 11, 49, 60]] = 1  # 60 is beyond the vocabulary
    allowed = np.packbits(bits, bitorder="little").view(np.int32)
    for params in (
        SamplingParams(temperature=0),
        SamplingParams(),
        SamplingParams(top_p=0.9, top_k=2),
    ):
        rows = [
            RowSampling(params, 1, position, allowed=allowed) for position in range(50)
        ]
        drawn = set(sampler(np.tile(LOGITS, (50, 1)), rows).tokens.tolist())
        assert drawn <= {7, 11, 49}


def test_log_probabilities_are_the_models_own(sampler: Draw) -> None:
    params = [
        SamplingParams(temperature=0, logprobs=3, logit_bias={9: 50.0}),
        SamplingParams(logprobs=0, top_k=1),
    ]
    found = sampler(np.stack([LOGITS, LOGITS]), [row_of(one, 1, 1) for one in params])
    exact = LOGITS.astype(np.float64) - np.log(np.exp(LOGITS.astype(np.float64)).sum())
    order = np.argsort(-exact, kind="stable")
    np.testing.assert_allclose(
        np.array(found.chosen_logprobs), [exact[9], exact[order[0]]], atol=1e-5
    )
    assert np.array(found.top_ids)[0].tolist() == order[:3].tolist()
    np.testing.assert_allclose(
        np.array(found.top_logprobs)[0], exact[order[:3]], atol=1e-5
    )


def test_penalties_and_bias_follow_their_formulas(sampler: Draw) -> None:
    flat = np.zeros(VOCAB, dtype=np.float32)
    flat[[5, 6, 7]] = 2.0, 1.9, 1.8
    greedy = {"temperature": 0}
    assert draw(sampler, SamplingParams(**greedy), 0, flat, (5,)) == 5
    assert (
        draw(sampler, SamplingParams(**greedy, repetition_penalty=1.06), 0, flat, (5,))
        == 6
    )
    assert (
        draw(sampler, SamplingParams(**greedy, presence_penalty=0.15), 0, flat, (5, 6))
        == 5
    )
    assert (
        draw(sampler, SamplingParams(**greedy, frequency_penalty=0.06), 0, flat, (5, 5))
        == 6
    )
    assert draw(sampler, SamplingParams(**greedy, logit_bias={7: 0.5}), 0, flat) == 7


def test_a_history_knows_after_many_tokens_what_counting_them_gives() -> None:
    params = SamplingParams(
        repetition_penalty=1.2,
        frequency_penalty=0.3,
        presence_penalty=-0.1,
        logit_bias={3: 2.0, 900: -1.0},
    )
    chance = np.random.default_rng(2)
    prompt, output = (
        chance.integers(0, 300, 40).tolist(),
        chance.integers(0, 600, 500).tolist(),
    )
    history = TokenHistory(params, prompt, 1000)
    for token in output:
        history.push(token)
    edited = chance.normal(size=1000).astype(np.float32)
    expected = edited.astype(np.float64)
    for token in range(1000):
        value = expected[token] + params.logit_bias.get(token, 0.0)
        if token in prompt or token in output:
            value = value / 1.2 if value > 0 else value * 1.2
        expected[token] = (
            value - 0.3 * output.count(token) + (0.1 if token in output else 0.0)
        )
    history.edits().apply(edited)
    np.testing.assert_allclose(edited, expected, atol=1e-4)


def test_an_entry_without_weight_is_never_picked() -> None:
    weights = np.zeros(5000, dtype=np.float32)
    weights[[300, 4000]] = 1.0, 1e-30
    assert {
        host_sampler.pick(weights, chance) for chance in (0.0, 0.5, 1 - 2.0**-22)
    } == {300}
    assert host_sampler.pick(np.array([0.0, 2.0, 0.0], dtype=np.float32), 0.999) == 1


@pytest.mark.parametrize("count", [1, 5, 100, 600, 5000, 20_000])
def test_the_largest_are_found_with_all_their_ties(count: int) -> None:
    values = np.random.default_rng(3).integers(0, 3000, 20_000).astype(np.float32)
    edge = np.sort(values)[::-1][count - 1]
    assert (
        host_sampler.largest(values, count).tolist()
        == np.flatnonzero(values >= edge).tolist()
    )


def test_uniform_numbers_are_the_same_on_every_machine() -> None:
    values = [
        uniform(seed, position) for seed in (0, 1, 2**64 - 1) for position in range(300)
    ]
    assert all(0 <= value < 1 for value in values)
    assert len(set(values)) > 890
    assert abs(float(np.mean(values)) - 0.5) < 0.05


def test_bias_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ParameterError, match="50"):
        TokenHistory.of(SamplingParams(logit_bias={50: 1.0}), (), VOCAB)
