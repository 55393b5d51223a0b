"""Greedy tokens through the paged engine equal plain mlx-lm's, token for token, alone and in a crowd."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from rvllm_local import LLM, SamplingParams
from rvllm_local.models.loader import load_model
from rvllm_local.models.locate import locate
from tests.support.tiny import save_tiny

ARCHITECTURES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "phi3",
    "olmo2",
    "gpt_oss",
    "qwen3_moe",
    "mixtral",
)
NUM_TOKENS = 40  # more than a block
ALONE = (1, 32, 33, 200)  # lengths of prompts
GREEDY = SamplingParams(max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True)


def reference_tokens(model: nn.Module, prompt: list[int], count: int) -> list[int]:
    """Plain mlx-lm: its own caches, the prompt but for its last token first, then one token at a time."""
    from mlx_lm.models.cache import make_prompt_cache

    caches = make_prompt_cache(model)
    if len(prompt) > 1:
        model(mx.array([prompt[:-1]]), cache=caches)
    token, tokens = prompt[-1], []
    for _ in range(count):
        token = int(mx.argmax(model(mx.array([[token]]), cache=caches)[0, -1]).item())
        tokens.append(token)
    return tokens


def prompts(vocab_size: int, lengths: tuple[int, ...]) -> list[list[int]]:
    random = np.random.default_rng(3)
    return [random.integers(0, vocab_size, size=length).tolist() for length in lengths]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def tiny(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, LLM]]:
    folder = tmp_path_factory.mktemp(request.param)
    save_tiny(request.param, folder, seed=1)
    with LLM(str(folder), kv_memory="16MB", max_rows=8, prefill_chunk=48) as llm:
        yield folder, llm


def test_alone_and_in_a_crowd(tiny: tuple[Path, LLM]) -> None:
    folder, llm = tiny
    loaded = load_model(locate(str(folder)))
    lengths = (1, 2, 31, 32, 33, 64, 97, 200)
    batch = prompts(loaded.vocab_size, lengths)
    expected = [reference_tokens(loaded.module, prompt, NUM_TOKENS) for prompt in batch]
    assert len({tuple(tokens) for tokens in expected}) > 1, (
        "a model that always says the same proves nothing"
    )
    for length, prompt, tokens in zip(lengths, batch, expected, strict=True):
        if length in ALONE:
            (answer,) = llm.generate(prompt, GREEDY)
            assert list(answer.token_ids) == tokens, f"alone, prompt of {length}"
    crowd = llm.generate(batch, GREEDY)
    for length, tokens, answer in zip(lengths, expected, crowd, strict=True):
        assert list(answer.token_ids) == tokens, f"in a crowd, prompt of {length}"
    assert llm.stats()["blocks_free"] == llm.stats()["blocks_total"]


def test_neighbours_with_other_options_change_nothing(tiny: tuple[Path, LLM]) -> None:
    folder, llm = tiny
    loaded = load_model(locate(str(folder)))
    (prompt,) = prompts(loaded.vocab_size, (70,))
    expected = reference_tokens(loaded.module, prompt, NUM_TOKENS)
    others = (
        SamplingParams(max_tokens=40, temperature=1.3, top_p=0.8, seed=1),
        SamplingParams(
            max_tokens=10, temperature=0.7, top_k=5, min_p=0.02, seed=2, logprobs=3
        ),
        SamplingParams(
            max_tokens=50, temperature=0, frequency_penalty=0.7, repetition_penalty=1.2
        ),
        SamplingParams(
            max_tokens=20,
            temperature=1.0,
            logit_bias={3: 5.0},
            presence_penalty=0.5,
            n=3,
            seed=4,
        ),
    )
    crowd = [
        llm.stream(row, params)
        for row, params in zip(prompts(loaded.vocab_size, (5, 90, 17, 40)), others)
    ]
    tokens: list[int] = []
    for event in llm.stream(prompt, GREEDY):
        tokens.extend(event.token_ids)
        for stream in crowd:
            next(stream, None)
    assert tokens == expected
    for stream in crowd:
        list(stream)
    assert llm.stats()["blocks_free"] == llm.stats()["blocks_total"]


def test_the_default_model_says_what_mlx_lm_says(smollm2: Path) -> None:
    loaded = load_model(locate(str(smollm2)))
    batch = prompts(loaded.vocab_size, (1, 45, 200))
    expected = [reference_tokens(loaded.module, prompt, 24) for prompt in batch]
    del loaded
    options = {"kv_memory": "128MB", "context_length": 1024}
    params = replace(GREEDY, max_tokens=24)
    with LLM(str(smollm2), cpu_weights="float32", **options) as llm:
        crowd = llm.generate(batch + batch[:2], params)
    assert [list(answer.token_ids) for answer in crowd] == expected + expected[:2]
