"""The deterministic mode: a request's tokens depend on nothing but the request."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rvllm_local import LLM, SamplingParams
from tests.support.tiny import save_tiny


@pytest.fixture(scope="module", params=["llama", "gemma2", "gemma3_text", "gpt_oss"])
def folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    save_tiny(request.param, path, seed=2)
    return path


def prompt(length: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, 60, length).tolist()


PROMPTS = [
    prompt(length, seed)
    for seed, length in enumerate((5, 33, 64, 65, 97, 130, 140, 40))
]
PARAMS = [
    SamplingParams(
        max_tokens=40, temperature=1.0, seed=seed, ignore_eos=True, logprobs=0
    )
    for seed in range(8)
]


def answers(
    llm: LLM, order: list[int], *, together: bool
) -> dict[int, tuple[object, ...]]:
    """Tokens and exact log-probabilities of each prompt."""
    found = {}
    if together:
        streams = {
            index: llm._submit(
                PROMPTS[index], PARAMS[index], adapter=None, parse_special=True
            )
            for index in order
        }
        for index, stream in streams.items():
            events = list(stream)
            found[index] = tuple((event.token_ids, event.logprobs) for event in events)
        return found
    for index in order:
        events = list(llm.stream(PROMPTS[index], PARAMS[index]))
        found[index] = tuple((event.token_ids, event.logprobs) for event in events)
    return found


def test_tokens_and_logprobs_are_the_same_in_any_company(
    folder: Path, tmp_path: Path
) -> None:
    every = list(range(len(PROMPTS)))

    def engine(**options: object) -> LLM:
        return LLM(
            str(folder),
            deterministic=True,
            max_rows=16,
            **{"kv_memory": "4MB", **options},
        )  # type: ignore[arg-type]

    with engine(cache="off", prefill_chunk=512) as llm:
        alone = answers(llm, every, together=False)
        assert answers(llm, every, together=True) == alone
    with engine(prefill_chunk=32, cache="disk", cache_dir=tmp_path) as llm:
        assert answers(llm, every[::-1], together=True) == alone
        assert answers(llm, every, together=False) == alone  # warm
        assert llm.stats()["prefix_hit_tokens"] > 0
    with engine(
        prefill_chunk=64, cache="disk", cache_dir=tmp_path
    ) as llm:  # after a restart
        assert answers(llm, every, together=True) == alone
        assert llm.stats()["prefix_hit_tokens"] > 0
    with engine(kv_memory="700KB", prefill_chunk=64) as llm:
        assert answers(llm, every, together=True) == alone
        assert llm.stats()["preemptions"] > 0
