"""A scored prompt gets the log-probability of each of its tokens, as a plain forward has it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from rvllm_local import LLM, SamplingParams
from rvllm_local.engine.prompt_scores import ScoreCache
from rvllm_local.engine.sampling.logprobs import TargetLogprobs
from rvllm_local.errors import ContextOverflowError, ParameterError
from rvllm_local.models.loader import load_model
from rvllm_local.models.locate import locate
from rvllm_local.types import Completion, FinishReason
from tests.support.tiny import save_tiny

SCORED = SamplingParams(max_tokens=0, prompt_logprobs=3, temperature=0)
ARCHITECTURES = ("llama", "gemma3_text")  # full attention, and windows


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path: Path = tmp_path_factory.mktemp(request.param)
    save_tiny(request.param, path, seed=2)
    return path


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("llama")
    save_tiny("llama", path, seed=2)
    return path


@pytest.fixture
def llm(llama: Path) -> Iterator[LLM]:
    with LLM(str(llama), kv_memory="4MB", max_rows=6, prefill_chunk=40) as engine:
        yield engine


def prompt(length: int, start: int = 3) -> list[int]:
    return [start + index * 7 % 90 for index in range(length)]


def plain_logprobs(folder: Path, tokens: list[int]) -> np.ndarray:
    """[tokens - 1, vocab] of a forward without caches."""
    logits = load_model(locate(str(folder))).module(mx.array([tokens]))[0]
    logits = logits.astype(mx.float32)
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))[:-1]


def check(answer: Completion, expected: np.ndarray, tokens: list[int]) -> None:
    assert answer.prompt_logprobs is not None
    assert len(answer.prompt_logprobs) == len(tokens)
    assert answer.prompt_logprobs[0] is None
    records = answer.prompt_logprobs[1:]
    for record, token, row in zip(records, tokens[1:], expected, strict=True):
        assert record is not None and record.token_id == token
        assert record.logprob == pytest.approx(row[token], abs=1e-3)
        best = np.sort(row)[::-1][:3]
        assert [value for _, value in record.top[:3]] == pytest.approx(best, abs=1e-3)
        for other, value in record.top:
            assert value == pytest.approx(row[other], abs=1e-3)
        assert token in [other for other, _ in record.top]


def test_each_token_is_scored_as_by_a_plain_forward(folder: Path) -> None:
    tokens = prompt(100)
    expected = plain_logprobs(folder, tokens)
    with LLM(str(folder), kv_memory="8MB", prefill_chunk=40) as engine:
        for length in (1, 2, 32, 33, 100):
            (answer,) = engine.generate(tokens[:length], SCORED)
            check(answer, expected[: length - 1], tokens[:length])
            assert answer.finish_reason is FinishReason.LENGTH
            assert answer.token_ids == () and answer.text == ""


def test_a_scored_prefix_is_reused_with_its_scores(llm: LLM, llama: Path) -> None:
    tokens = prompt(100)
    expected = plain_logprobs(llama, tokens)
    first, second = (llm.generate(tokens, SCORED)[0] for _ in range(2))
    assert first.cached_tokens == 0 and second.cached_tokens == 96
    check(second, expected, tokens)
    other = [*tokens[:70], *prompt(20, start=50)]
    (third,) = llm.generate(other, SCORED)
    assert third.cached_tokens == 64
    check(third, plain_logprobs(llama, other), other)


def test_a_prefix_that_was_not_scored_is_computed_again(llm: LLM, llama: Path) -> None:
    tokens = prompt(100)
    params = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True)
    llm.generate(tokens, params)
    (answer,) = llm.generate(tokens, SCORED)
    assert answer.cached_tokens == 0
    check(answer, plain_logprobs(llama, tokens), tokens)
    assert llm.generate(tokens, params)[0].cached_tokens == 96


def test_scores_of_fewer_alternatives_are_not_enough(llm: LLM, llama: Path) -> None:
    tokens = prompt(70)
    few = SamplingParams(max_tokens=0, prompt_logprobs=0, temperature=0)
    (plain,) = llm.generate(tokens, few)
    assert plain.prompt_logprobs is not None
    assert all(record.top == () for record in plain.prompt_logprobs[1:] if record)
    (answer,) = llm.generate(tokens, SCORED)
    assert answer.cached_tokens == 0
    check(answer, plain_logprobs(llama, tokens), tokens)
    assert llm.generate(tokens, few)[0].cached_tokens == 64


def test_a_scored_prompt_goes_on_to_its_answer(llm: LLM, llama: Path) -> None:
    tokens = prompt(50)
    params = SamplingParams(max_tokens=5, temperature=0, ignore_eos=True)
    (unscored,) = llm.generate(tokens, params)
    scored = SamplingParams(
        max_tokens=5, temperature=0, ignore_eos=True, prompt_logprobs=3, logprobs=2
    )
    (answer,) = llm.generate(tokens, scored)
    assert answer.token_ids == unscored.token_ids
    assert answer.logprobs is not None and len(answer.logprobs) == 5
    check(answer, plain_logprobs(llama, tokens), tokens)


def test_the_first_of_several_choices_is_scored(llm: LLM, llama: Path) -> None:
    tokens = prompt(50)
    params = SamplingParams(max_tokens=3, n=2, seed=1, prompt_logprobs=3)
    first, second = llm.generate(tokens, params)
    check(first, plain_logprobs(llama, tokens), tokens)
    assert second.prompt_logprobs is None and len(second.token_ids) >= 1


def test_a_crowd_of_scored_prompts_beside_answers(llm: LLM, llama: Path) -> None:
    tokens = prompt(60)
    prompts = [tokens[: 10 + 5 * number] for number in range(10)]
    params = SamplingParams(max_tokens=30, temperature=0, ignore_eos=True)
    alone = llm.generate([9, 8, 7], params)[0].token_ids
    stream = llm.stream([9, 8, 7], params)
    answers = llm.generate(prompts, SCORED)
    expected = plain_logprobs(llama, tokens)
    for scored, answer in zip(prompts, answers, strict=True):
        check(answer, expected[: len(scored) - 1], scored)
    heard = [token for event in stream for token in event.token_ids]
    assert tuple(heard) == alone


def test_a_prompt_may_fill_the_whole_context(llama: Path) -> None:
    with LLM(str(llama), kv_memory="4MB", context_length=64) as engine:
        (answer,) = engine.generate(prompt(64), SCORED)
        check(answer, plain_logprobs(llama, prompt(64)), prompt(64))
        with pytest.raises(ContextOverflowError):
            engine.generate(prompt(65), SCORED)
        with pytest.raises(ContextOverflowError):
            engine.generate(prompt(64), SamplingParams(prompt_logprobs=0))


def test_no_tokens_are_refused_unless_the_prompt_is_scored() -> None:
    with pytest.raises(ParameterError, match="max_tokens"):
        SamplingParams(max_tokens=0)
    with pytest.raises(ParameterError, match="prompt_logprobs"):
        SamplingParams(prompt_logprobs=21)


def test_the_cache_forgets_the_block_that_was_used_least() -> None:
    entries = TargetLogprobs(
        np.zeros(32, np.float32), np.zeros((32, 0)), np.zeros((32, 0))
    )
    cache = ScoreCache(max_bytes=2 * entries.logprobs.nbytes)
    cache.add(b"a", 1, entries)
    cache.add(b"b", 1, entries)
    assert cache.get(b"a", 1, 0) is not None
    cache.add(b"c", 1, entries)
    assert cache.get(b"b", 1, 0) is None
    assert cache.get(b"a", 1, 0) is not None and cache.get(b"a", 2, 0) is None
