"""Recurrent layers in the engine: snapshots where prompts part, forks, many rows at once, and the deterministic mode."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from msgspec.structs import replace

from rvllm_local.clients.contract import make_requests
from rvllm_local.engine.core import EngineCore
from rvllm_local.engine.startup.build import build_core
from rvllm_local.memory.blocks import BLOCK_TOKENS
from rvllm_local.memory.state import RecurrentState, StateSnapshots, stacked
from rvllm_local.options import EngineOptions
from rvllm_local.types import SamplingParams, StreamEvent
from tests.support.matrix import (
    NUM_TOKENS,
    Answer,
    Bytes,
    loaded,
    mlx_lm_tokens,
    tokens,
)

OPTIONS = EngineOptions(kv_memory=16_000_000, max_rows=6, prefill_chunk=64)
GREEDY = SamplingParams(max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True)
FAMILIES = ("mamba2", "qwen3_next", "falcon_h1")


def ask(
    core: EngineCore, prompts: list[list[int]], params: SamplingParams = GREEDY
) -> list[Answer]:
    answers = []
    for prompt in prompts:
        for request in make_requests(tuple(prompt), params):
            answers.append(Answer())
            core.add(request, answers[-1])
    while core.has_work:
        core.step()
    core.check_integrity()
    return answers


@pytest.mark.parametrize("arch", FAMILIES)
def test_prompts_of_any_length_in_one_crowd(arch: str) -> None:
    prompts = [tokens(length, length) for length in (1, 2, 31, 32, 33, 65, 130)]
    expected = [mlx_lm_tokens(loaded(arch).module, prompt) for prompt in prompts]
    core = build_core(loaded(arch), Bytes(), OPTIONS)
    assert [answer.tokens for answer in ask(core, prompts)] == expected


@pytest.mark.parametrize("arch", FAMILIES)
def test_where_prompts_part_the_second_leaves_a_snapshot_for_the_third(
    arch: str,
) -> None:
    system = tokens(100, 1)
    prompts = [system + tokens(50, seed) for seed in (2, 3, 4)]
    core = build_core(loaded(arch), Bytes(), OPTIONS)
    answers = [ask(core, [prompt])[0] for prompt in prompts]
    assert [answer.tokens for answer in answers] == [
        mlx_lm_tokens(loaded(arch).module, prompt) for prompt in prompts
    ]
    assert answers[1].cached in (0, 64)  # the end of a chunk of the first
    assert answers[2].cached == 100 // BLOCK_TOKENS * BLOCK_TOKENS
    follow_up = prompts[0] + answers[0].tokens + tokens(10, 5)
    (answer,) = ask(core, [follow_up])
    assert (
        answer.cached == (150 + NUM_TOKENS - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    )  # the answer's own blocks, too
    assert answer.tokens == mlx_lm_tokens(loaded(arch).module, follow_up)


@pytest.mark.parametrize("arch", FAMILIES)
def test_choices_share_their_prompt_and_part(arch: str) -> None:
    params = SamplingParams(
        max_tokens=20, temperature=1.0, seed=7, n=3, ignore_eos=True
    )
    prompt = tokens(75, 9)
    core = build_core(loaded(arch), Bytes(), OPTIONS)
    together = [answer.tokens for answer in ask(core, [prompt], params)]
    assert len({tuple(row) for row in together}) == 3
    alone = build_core(loaded(arch), Bytes(), replace(OPTIONS, max_rows=1, cache="off"))
    assert together == [answer.tokens for answer in ask(alone, [prompt], params)]


@pytest.mark.parametrize("arch", FAMILIES)
def test_deterministic_answers_in_any_company(arch: str) -> None:
    params = SamplingParams(max_tokens=24, temperature=1.0, seed=3, ignore_eos=True)
    options = replace(OPTIONS, deterministic=True)
    prompts = [tokens(length, length) for length in (40, 64, 97)]
    core = build_core(loaded(arch), Bytes(), options)
    crowd = [answer.tokens for answer in ask(core, prompts, params)]
    again = [answer.tokens for answer in ask(core, prompts[::-1], params)][::-1]
    assert again == crowd
    alone = [
        ask(build_core(loaded(arch), Bytes(), options), [prompt], params)[0].tokens
        for prompt in prompts
    ]
    assert alone == crowd


def test_without_a_cache_nothing_is_kept() -> None:
    core = build_core(loaded("mamba2"), Bytes(), replace(OPTIONS, cache="off"))
    prompt = tokens(70, 1)
    first, second = ask(core, [prompt])[0], ask(core, [prompt])[0]
    assert (second.cached, second.tokens) == (0, first.tokens)


def test_the_plan_counts_states() -> None:
    core = build_core(loaded("mamba2"), Bytes(), OPTIONS)
    assert core.snapshot().memory["states"] > 0


def test_snapshots_are_copies_and_the_oldest_go() -> None:
    snapshots = StateSnapshots(2)
    batch = (mx.arange(12, dtype=mx.float32).reshape(3, 4), None)
    for row, key in enumerate((b"a", b"b", b"c")):
        snapshots.add(key, RecurrentState(batch, row))
    assert [key in snapshots for key in (b"a", b"b", b"c")] == [False, True, True]
    part, empty = snapshots.get(b"b")
    assert part is not None
    assert part.tolist() == [[4, 5, 6, 7]]
    assert empty is None
    snapshots.add(b"d", RecurrentState(batch, 0))
    assert b"c" not in snapshots  # b was used since
    snapshots.clear()
    assert len(snapshots) == 0


def test_rows_of_the_last_call_are_not_stacked_again() -> None:
    batch = (mx.zeros((2, 3)),)
    rows = [RecurrentState(batch, 0), RecurrentState(batch, 1)]
    assert stacked(rows) is batch
    (part,) = stacked([rows[1], rows[0], rows[1]])
    assert part is not None
    assert part.shape == (3, 3)
    (part,) = stacked(rows[:1])
    assert part is not None
    assert part.shape == (1, 3)
    assert stacked([RecurrentState()]) == ()


@pytest.mark.parametrize("arch", FAMILIES)
def test_a_prompt_is_scored_as_by_a_plain_forward(arch: str) -> None:
    prompt = tokens(90, 5)
    logits = loaded(arch).module(mx.array([prompt]))[0].astype(mx.float32)
    logprobs = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    core = build_core(loaded(arch), Bytes(), OPTIONS)
    params = SamplingParams(max_tokens=0, prompt_logprobs=0, temperature=0)
    for _ in range(2):
        heard: list[StreamEvent] = []
        core.add(make_requests(tuple(prompt), params)[0], heard.append)
        while core.has_work:
            core.step()
        records = [part for event in heard for part in event.prompt_logprobs or ()]
        assert [record and record.token_id for record in records] == [None, *prompt[1:]]
        for position, record in enumerate(records):
            if record is not None:
                expected = logprobs[position - 1, prompt[position]]
                assert record.logprob == pytest.approx(expected, abs=1e-3)
    core.close("the end")
