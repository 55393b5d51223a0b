"""Two ranks on loopback answer as one process does: tokens, company, room, prefixes.

Once each has a part of every layer, and once each has layers of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rvllm_local import LLM, SamplingParams
from tests.support.lora import save_adapter
from tests.support.ranks import needs_ring, served_by_ranks
from tests.support.tiny import VOCAB_SIZE, save_tiny

pytestmark = needs_ring
NUM_TOKENS = 24
GREEDY = SamplingParams(max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True)
LENGTHS = (1, 2, 31, 32, 33, 64, 97, 200)
# A rank's part of a block: one of two KV heads of three layers; two of three layers with
# one head.
_BLOCK_BYTES = {"divided": 3 * 2 * 32 * 16 * 4, "pipeline": 2 * 2 * 32 * 16 * 4}
_FAMILIES = {"divided": "llama", "pipeline": "qwen2"}
_BLOCKS = 16  # too few for the eight prompts at once


def prompts() -> list[list[int]]:
    random = np.random.default_rng(3)
    return [random.integers(0, VOCAB_SIZE, size=length).tolist() for length in LENGTHS]


@pytest.fixture(scope="module", params=["divided", "pipeline"])
def division(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def folder(division: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(_FAMILIES[division], tmp_path_factory.mktemp("model"), seed=1)


@pytest.fixture(scope="module")
def adapter(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It changes layers whose rows are divided, and layers whose columns are."""
    keys = ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")
    return save_adapter(tmp_path_factory.mktemp("adapter") / "a", folder, keys)


@pytest.fixture(scope="module")
def ranks(division: str, folder: Path, adapter: Path) -> Iterator[LLM]:
    with served_by_ranks(
        folder,
        pipeline=division == "pipeline",
        kv_memory=_BLOCKS * _BLOCK_BYTES[division],
        max_rows=8,
        prefill_chunk=48,
        adapters=(("tuned", str(adapter)),),
    ) as llm:
        yield llm


@pytest.fixture(scope="module")
def alone(folder: Path, adapter: Path) -> Iterator[LLM]:
    adapters = {"tuned": adapter}
    with LLM(
        str(folder), kv_memory="16MB", max_rows=8, prefill_chunk=48, adapters=adapters
    ) as llm:
        yield llm


def tokens_of(llm: LLM, params: SamplingParams) -> list[list[int]]:
    return [list(answer.token_ids) for answer in llm.generate(prompts(), params)]


def test_eight_requests_at_once_answer_as_one_process_does(
    ranks: LLM, alone: LLM
) -> None:
    assert tokens_of(ranks, GREEDY) == tokens_of(alone, GREEDY)


def test_requests_that_have_to_make_room_go_on_where_they_were(
    ranks: LLM, alone: LLM
) -> None:
    """Eight short prompts fit at once, and their answers do not."""
    params = SamplingParams(max_tokens=96, temperature=0, ignore_eos=True)
    batch = [[token] * 30 for token in range(8)]
    answers = ranks.generate(batch, params)
    expected = alone.generate(batch, params)
    for ours, theirs in zip(answers, expected, strict=True):
        assert ours.token_ids == theirs.token_ids
    stats = ranks.stats()
    assert stats["preemptions"] > 0
    assert stats["blocks_swapped"] == 0
    assert stats["blocks_free"] == stats["blocks_total"]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(max_tokens=NUM_TOKENS, temperature=0.9, seed=7, logprobs=2),
        SamplingParams(max_tokens=NUM_TOKENS, temperature=1.2, seed=1, top_p=0.8),
        SamplingParams(
            max_tokens=NUM_TOKENS, temperature=0.8, seed=3, presence_penalty=0.5
        ),
    ],
)
def test_a_seed_draws_the_same_tokens(
    ranks: LLM, alone: LLM, params: SamplingParams
) -> None:
    assert tokens_of(ranks, params) == tokens_of(alone, params)


def test_choices_fork_on_all_ranks(ranks: LLM, alone: LLM) -> None:
    """The last block of the prompt is partly filled, and copied for each choice."""
    params = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.9, seed=5, n=3)
    prompt = prompts()[4]
    expected = alone.generate(prompt, params)
    answers = ranks.generate(prompt, params)
    assert [one.token_ids for one in answers] == [one.token_ids for one in expected]


def test_rows_with_an_adapter_run_beside_rows_without(ranks: LLM, alone: LLM) -> None:
    names = ["tuned", None] * (len(LENGTHS) // 2)
    answers = ranks.generate(prompts(), GREEDY, adapter=names)
    expected = alone.generate(prompts(), GREEDY, adapter=names)
    tokens = [list(one.token_ids) for one in answers]
    assert tokens == [list(one.token_ids) for one in expected]
    without = tokens_of(alone, GREEDY)
    assert [one != other for one, other in zip(tokens, without, strict=True)] == [
        name is not None for name in names
    ]


def test_a_warm_prefix_is_read_by_all_ranks(ranks: LLM, alone: LLM) -> None:
    prompt = prompts()[-1]
    (first,) = ranks.generate(prompt, GREEDY)
    (second,) = ranks.generate(prompt, GREEDY)
    (expected,) = alone.generate(prompt, GREEDY)
    assert second.cached_tokens > 0
    assert first.token_ids == second.token_ids == expected.token_ids


def test_a_grammar_holds(ranks: LLM, alone: LLM) -> None:
    messages = [{"role": "user", "content": "a color"}]
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}}
    response_format = {"type": "json_schema", "json_schema": {"schema": schema}}
    params = SamplingParams(max_tokens=40, temperature=0)
    (answer,) = ranks.chat(messages, params, response_format=response_format)
    (expected,) = alone.chat(messages, params, response_format=response_format)
    assert answer.text == expected.text


def test_what_is_cancelled_gives_its_blocks_back(ranks: LLM) -> None:
    long_one = SamplingParams(max_tokens=300, temperature=0, ignore_eos=True)
    stream = iter(ranks.stream(prompts()[3], long_one))
    next(stream)
    stream.close()
    ranks.generate(prompts()[0], GREEDY)
    stats = ranks.stats()
    assert stats["requests_running"] == 0
    assert stats["blocks_free"] == stats["blocks_total"]


def test_scores_of_a_prompt_are_those_of_one_process(ranks: LLM, alone: LLM) -> None:
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=1)
    (answer,) = ranks.generate(prompts()[4], params)
    (expected,) = alone.generate(prompts()[4], params)
    assert answer.prompt_logprobs is not None
    for ours, theirs in zip(
        answer.prompt_logprobs, expected.prompt_logprobs, strict=True
    ):
        if theirs is not None:
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
