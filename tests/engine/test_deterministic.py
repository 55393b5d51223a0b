"""The deterministic mode: a request's tokens depend on nothing but the request."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rvllm_local import LLM, SamplingParams
from tests.support.tiny import save_tiny

# By architecture, an arena in which the answers below do not all have room at once.
TIGHT = {
    "llama": "340KB",
    "gemma2": "500KB",
    "gemma3_text": "500KB",
    "gpt_oss": "500KB",
}


def prompt(length: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, 60, length).tolist()


PROMPTS = [prompt(length, seed) for seed, length in enumerate((5, 33, 62, 94, 126, 30))]
PARAMS = [
    SamplingParams(
        max_tokens=36, temperature=1.0, seed=seed, ignore_eos=True, logprobs=0
    )
    for seed in range(len(PROMPTS))
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


@pytest.mark.parametrize("arch", TIGHT)
def test_tokens_and_logprobs_are_the_same_in_any_company(
    arch: str, tmp_path: Path
) -> None:
    folder = save_tiny(arch, tmp_path / "model", seed=2)
    cache = tmp_path / "cache"
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
    with engine(prefill_chunk=32, cache="disk", cache_dir=cache) as llm:
        assert answers(llm, every[::-1], together=True) == alone
        warm = answers(llm, every[2:4], together=False)
        assert warm == {index: alone[index] for index in every[2:4]}
        assert llm.stats()["prefix_hit_tokens"] > 0
    with engine(
        prefill_chunk=64, cache="disk", cache_dir=cache
    ) as llm:  # after a restart
        assert answers(llm, every, together=True) == alone
        assert llm.stats()["prefix_hit_tokens"] > 0
    with engine(kv_memory=TIGHT[arch], prefill_chunk=64) as llm:
        assert answers(llm, every, together=True) == alone
        assert llm.stats()["preemptions"] > 0
