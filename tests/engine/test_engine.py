"""The real engine over a tiny model: every ending frees its blocks, and seeds belong to their request."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rvllm_local import LLM, SamplingParams
from rvllm_local.errors import (
    ContextOverflowError,
    EngineClosedError,
    MemoryBudgetError,
    ParameterError,
)
from rvllm_local.types import Completion, FinishReason
from tests.support.tiny import save_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    save_tiny("llama", path, seed=2)
    return path


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(str(folder), kv_memory="4MB", max_rows=6, prefill_chunk=32) as engine:
        yield engine


def assert_nothing_leaks(llm: LLM) -> None:
    stats = llm.stats()
    assert stats["blocks_free"] == stats["blocks_total"]
    assert stats["requests_running"] == stats["requests_waiting"] == 0


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    requests=st.lists(
        st.tuples(
            st.integers(1, 80),
            st.integers(1, 24),
            st.sampled_from(["run", "cancel", "stop"]),
        ),
        min_size=1,
        max_size=10,
    )
)
def test_any_mix_of_endings_gives_every_block_back(
    llm: LLM, requests: list[tuple[int, int, str]]
) -> None:
    streams = []
    for length, count, ending in requests:
        stop = ("a", "e", " ") if ending == "stop" else ()
        params = SamplingParams(
            max_tokens=count, temperature=0.9, seed=length, stop=stop, ignore_eos=True
        )
        streams.append(
            (llm.stream([1 + index % 200 for index in range(length)], params), ending)
        )
    for stream, ending in streams:
        if ending == "cancel":
            next(stream)
            stream.close()  # type: ignore[attr-defined]
        else:
            assert list(stream)[-1].finish_reason in (
                FinishReason.STOP,
                FinishReason.LENGTH,
            )
    llm.generate(
        [1], SamplingParams(max_tokens=1)
    )  # the cancels have been taken by now
    assert_nothing_leaks(llm)


def test_same_seed_same_tokens_whoever_else_is_there(llm: LLM) -> None:
    params = SamplingParams(
        max_tokens=30, temperature=1.0, top_p=0.95, seed=11, ignore_eos=True
    )
    alone = llm.generate([5, 6, 7], params)[0].token_ids
    crowd = llm.generate([[9] * 40, [5, 6, 7], [3], [8] * 17], params)[1].token_ids
    assert crowd == alone


def test_choices_differ_and_repeat(llm: LLM) -> None:
    params = SamplingParams(
        max_tokens=20, temperature=1.0, seed=5, n=3, ignore_eos=True
    )
    first, second = llm.generate([4, 5], params), llm.generate([4, 5], params)
    assert [row.token_ids for row in first] == [row.token_ids for row in second]
    assert len({row.token_ids for row in first}) == 3
    assert [row.index for row in first] == [0, 1, 2]


def test_logprobs_are_sorted_and_hold_the_choice(llm: LLM) -> None:
    (answer,) = llm.generate(
        [4, 5, 6],
        SamplingParams(max_tokens=5, temperature=0, logprobs=4, ignore_eos=True),
    )
    assert answer.logprobs is not None and len(answer.logprobs) == 5
    for token, logprob in zip(answer.token_ids, answer.logprobs, strict=True):
        assert logprob.token_id == token
        assert len(logprob.top) == 4
        assert logprob.top[0] == (token, pytest.approx(logprob.logprob, abs=1e-5))
        assert [value for _, value in logprob.top] == sorted(
            (value for _, value in logprob.top), reverse=True
        )


def test_stop_string_is_not_part_of_the_text(llm: LLM) -> None:
    free = llm.generate(
        [4, 5, 6], SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
    )[0]
    stop = free.text[len(free.text) // 2 :][:2]
    assert stop
    cut = llm.generate(
        [4, 5, 6],
        SamplingParams(max_tokens=24, temperature=0, ignore_eos=True, stop=stop),
    )[0]
    assert cut.finish_reason is FinishReason.STOP
    assert cut.text == free.text[: free.text.index(stop)]


def test_many_threads_share_one_engine(llm: LLM) -> None:
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    expected = {
        start: llm.generate([start, 2, 3], params)[0].token_ids for start in range(1, 9)
    }
    found: dict[int, tuple[int, ...]] = {}

    def ask(start: int) -> None:
        found[start] = llm.generate([start, 2, 3], params)[0].token_ids

    threads = [threading.Thread(target=ask, args=(start,)) for start in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert found == expected


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], SamplingParams(), "empty"),
        ([1, 100_000], SamplingParams(), "100000"),
        ([-1], SamplingParams(), "-1"),
        ([1], SamplingParams(logit_bias={99_999: 1.0}), "99999"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(
    llm: LLM, prompt: list[int], params: SamplingParams, message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        llm.generate(prompt, params)
    assert_nothing_leaks(llm)


def test_each_prompt_may_have_params_of_its_own(llm: LLM) -> None:
    short, long = (
        SamplingParams(max_tokens=count, temperature=0, ignore_eos=True)
        for count in (2, 5)
    )
    answers = llm.generate([[5, 6], np.array([5, 6])], [short, long])
    assert [len(answer.token_ids) for answer in answers] == [2, 5]
    assert answers[1].token_ids[:2] == answers[0].token_ids
    with pytest.raises(ParameterError, match="2 prompts and 1 params"):
        llm.generate([[5], [6]], [short])
    assert_nothing_leaks(llm)


@pytest.mark.parametrize(
    "prompt",
    [3, [True], [["x"]], [1.5], {"a": 1}, [[5], 6, None], b"abc", [b"abc"], {"a"}],
)
def test_what_is_no_prompt_is_refused(llm: LLM, prompt: Any) -> None:
    with pytest.raises(ParameterError, match="text or a list of integer token ids"):
        llm.generate(prompt)
    assert_nothing_leaks(llm)


@pytest.mark.parametrize("params", [{"temperature": 0}, [{"temperature": 0}], 5])
def test_what_are_no_params_is_refused(llm: LLM, params: Any) -> None:
    with pytest.raises(ParameterError, match="must be SamplingParams"):
        llm.generate([[5]], params)
    with pytest.raises(ParameterError, match="must be SamplingParams"):
        llm.stream([5], params)
    with pytest.raises(ParameterError, match="adapter must be a name"):
        llm.generate([[5]], adapter=5)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="response_format: expected object"):
        llm.chat([{"role": "user", "content": "x"}], response_format="json")  # type: ignore[arg-type]
    assert_nothing_leaks(llm)


def test_context_overflow_is_refused(llm: LLM, folder: Path) -> None:
    with pytest.raises(ContextOverflowError, match="context of"):
        llm.generate([1] * 100_000, SamplingParams(max_tokens=1))
    with LLM(
        str(folder), kv_memory="200KB", context_length=400, max_rows=1, prefill_chunk=32
    ) as small:
        with pytest.raises(ContextOverflowError, match="raise kv_memory"):
            small.generate([1] * 350, SamplingParams(max_tokens=40))
        assert small.generate([1, 2], SamplingParams(max_tokens=3, ignore_eos=True))[
            0
        ].token_ids


def test_an_answer_ends_at_the_context(folder: Path) -> None:
    with LLM(str(folder), kv_memory="4MB", context_length=64) as short:
        answer = short.generate(
            [1] * 60, SamplingParams(max_tokens=50, ignore_eos=True)
        )[0]
    assert answer.finish_reason is FinishReason.LENGTH
    assert len(answer.token_ids) == 4


def test_kv_budget_below_one_block_is_refused(folder: Path) -> None:
    with pytest.raises(MemoryBudgetError, match="raise kv_memory"):
        LLM(str(folder), kv_memory="1KB")


def test_a_closed_engine_says_so(folder: Path) -> None:
    engine = LLM(folder, kv_memory="4MB")
    engine.close()
    engine.close()
    with pytest.raises(EngineClosedError):
        engine.generate([1])


def test_a_script_that_closes_nothing_ends_well_and_leaves_its_cache(
    folder: Path, tmp_path: Path
) -> None:
    code = """
import sys
from rvllm_local import LLM, SamplingParams
llm = LLM(sys.argv[1], kv_memory="4MB", cache="disk", cache_dir=sys.argv[2])
next(llm.stream([5] * 100, SamplingParams(ignore_eos=True)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, folder, tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list(tmp_path.rglob("*.kv"))) >= 3


class TestOwnEnds:
    """Tokens that end an answer, and how many come before any end does."""

    PROMPT = (4, 5, 6)

    def answer(self, llm: LLM, **fields: Any) -> Completion:
        params = SamplingParams(**{"max_tokens": 12, "temperature": 0, **fields})
        return llm.generate(list(self.PROMPT), params)[0]

    @pytest.fixture
    def free(self, llm: LLM) -> Completion:
        return self.answer(llm, temperature=1.0, seed=3, ignore_eos=True)

    def test_a_stop_token_ends_and_is_no_text(self, llm: LLM, free: Completion) -> None:
        index = 5
        stop = free.token_ids[index]
        index = free.token_ids.index(stop)
        cut = self.answer(
            llm, temperature=1.0, seed=3, ignore_eos=True, stop_token_ids=[stop, 9]
        )
        assert cut.finish_reason is FinishReason.STOP
        assert cut.token_ids == free.token_ids[: index + 1]
        assert free.text.startswith(cut.text) and cut.text != free.text

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_no_end_comes_among_the_first_tokens(
        self, llm: LLM, temperature: float
    ) -> None:
        wanted = {0: 100.0, 7: 100.0}  # the end token, and a stop token
        fields = {"logit_bias": wanted, "stop_token_ids": (7,), "seed": 1}
        fields["temperature"] = temperature
        assert len(self.answer(llm, **fields).token_ids) == 1
        for count in (1, 4, 12):
            tokens = self.answer(llm, min_tokens=count, **fields).token_ids
            assert len(tokens) == min(count + 1, 12)
            assert not {0, 7}.intersection(tokens[:count])

    def test_a_stop_string_counts_after_the_first_tokens(
        self, llm: LLM, free: Completion
    ) -> None:
        fields = {"temperature": 1.0, "seed": 3, "ignore_eos": True}
        later = self.answer(llm, min_tokens=6, stop=list(free.text[:2]), **fields)
        assert later.token_ids[:6] == free.token_ids[:6]
        assert len(later.token_ids) > 6 or later.finish_reason is FinishReason.LENGTH

    def test_beside_a_grammar_the_grammar_wins(self, llm: LLM) -> None:
        form = {"type": "choice", "choices": ["yes", "no"]}
        params = SamplingParams(max_tokens=20, min_tokens=20, temperature=0)
        answer = llm.chat(
            [{"role": "user", "content": "hi"}], params, response_format=form
        )[0]
        assert answer.text in ("yes", "no")
        assert answer.finish_reason is FinishReason.STOP

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"min_tokens": 13}, "min_tokens is 13, more than the 12"),
            ({"min_tokens": -1}, "min_tokens must be between 0"),
            ({"stop_token_ids": [10**6]}, "outside the vocabulary"),
            ({"stop_token_ids": [-1]}, "stop_token_ids must be between"),
            ({"stop_token_ids": "ab"}, "must be a list of token ids"),
            ({"stop_token_ids": range(65)}, "at most 64"),
        ],
    )
    def test_what_is_none_is_refused(
        self, llm: LLM, fields: dict[str, Any], words: str
    ) -> None:
        with pytest.raises(ParameterError, match=words):
            self.answer(llm, **fields)
