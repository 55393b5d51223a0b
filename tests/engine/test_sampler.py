"""Both samplers against plain numpy: filters keep the right tokens, draws follow the distribution, rows are alone."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from rvllm_local.engine.sampling import host_sampler
from rvllm_local.engine.sampling.noise import HostNoise, noise_key
from rvllm_local.engine.sampling.sampler import (
    RowSampling,
    SampledTokens,
    SamplingBatch,
    noise_times,
    sample,
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
    rows = [row_of(params, 9, position) for position in range(400)]
    drawn = set(sampler(np.tile(LOGITS, (400, 1)), rows).tokens.tolist())
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
        if params.top_p == 1:  # and is the first of those that are kept
            times = all_times(9, position, size)
            speeds = np.where(logits >= edge, weights / times, 0.0)
            assert speeds[token] >= speeds.max() * (1 - 1e-4)


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


def all_times(seed: int, position: int, size: int) -> np.ndarray:
    key = np.array([noise_key(seed, position)], dtype=np.uint32)
    return np.array(noise_times(mx.array(key), size))[0]


def test_draws_follow_the_distribution_by_chi_square(sampler: Draw) -> None:
    """Over positions of one seed and over seeds; the seeds are fixed."""
    chance = np.random.default_rng(5)
    for size, params in (
        (12, SamplingParams(temperature=1.3)),
        (900, SamplingParams(top_k=20)),
    ):
        logits = chance.normal(size=size).astype(np.float32) * 2
        support = kept(logits, params)
        tempered = logits[support].astype(np.float64) / params.temperature
        expected = np.exp(tempered) / np.exp(tempered).sum()
        count = 1500
        for rows in (
            [RowSampling(params, 77, position) for position in range(count)],
            [RowSampling(params, seed, 4) for seed in range(count)],
        ):
            drawn = np.concatenate(
                [
                    np.array(sampler(np.tile(logits, (500, 1)), part).tokens)
                    for part in (rows[at : at + 500] for at in range(0, count, 500))
                ]
            )
            seen = np.array([(drawn == token).sum() for token in support])
            assert seen.sum() == count
            often = expected * count >= 5
            differences = (seen - expected * count)[often] ** 2
            statistic = (differences / (expected * count)[often]).sum()
            # Mean and variance of chi-square: as many, and twice as many, as its terms.
            assert statistic < often.sum() + 4 * np.sqrt(2 * often.sum())


def test_noise_of_a_position_is_what_every_machine_makes() -> None:
    times = all_times(2**63, 7, 1000)
    assert times[[0, 1, 2, 999]].tolist() == pytest.approx(
        [1.09211, 1.3987, 0.494403, 1.38186], rel=1e-5
    )
    host = HostNoise([(2**63, 7)], 1000).row(0)
    for token in (0, 1, 300, 999):
        _, speed = host.first_of(np.array([token]), np.ones(1, dtype=np.float32))
        assert 1 / speed == pytest.approx(float(times[token]), rel=1e-5)


@pytest.mark.parametrize("size", [700, 4096, 33_000])
def test_noise_is_exponential_and_independent(size: int) -> None:
    times = np.stack([all_times(3, position, size) for position in range(40)])
    assert (times > 0).all()
    assert abs(times.mean() - 1) < 0.03 and abs(times.std() - 1) < 0.05
    for share in (0.01, 0.5, 0.99):
        below = (times < -np.log1p(-share)).mean()
        assert abs(below - share) < 5 * np.sqrt(share * (1 - share) / times.size)
    for other in (times[:, 1:], times[:, 256:], times[:, 300:]):
        width = other.shape[1]
        assert abs(np.corrcoef(times[:, :width].ravel(), other.ravel())[0, 1]) < 0.03
    shifted = np.corrcoef(times[:-1].ravel(), times[1:].ravel())[0, 1]
    assert abs(shifted) < 0.03


def test_similar_distributions_mostly_give_the_same_token(sampler: Draw) -> None:
    """At least (1 - d) / (1 + d) of the draws agree, where d is half the distance."""
    chance = np.random.default_rng(6)
    ours = chance.normal(size=(1, 2000)).astype(np.float32) * 2
    theirs = ours + chance.normal(size=ours.shape).astype(np.float32) * 0.2
    shares = [np.exp(part[0].astype(np.float64)) for part in (ours, theirs)]
    shares = [part / part.sum() for part in shares]
    distance = np.abs(shares[0] - shares[1]).sum() / 2
    rows = [RowSampling(SamplingParams(), 8, position) for position in range(400)]
    drawn = [
        np.array(sampler(np.tile(part, (400, 1)), rows).tokens)
        for part in (ours, theirs)
    ]
    agreed = (drawn[0] == drawn[1]).mean()
    assert agreed >= (1 - distance) / (1 + distance) - 0.05


@pytest.mark.parametrize("count", [1, 5, 100, 600, 5000, 20_000])
def test_the_largest_are_found_with_all_their_ties(count: int) -> None:
    values = np.random.default_rng(3).integers(0, 3000, 20_000).astype(np.float32)
    edge = np.sort(values)[::-1][count - 1]
    assert (
        host_sampler.largest(values, count).tolist()
        == np.flatnonzero(values >= edge).tolist()
    )


def test_bias_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ParameterError, match="50"):
        TokenHistory.of(SamplingParams(logit_bias={50: 1.0}), (), VOCAB)
