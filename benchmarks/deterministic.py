"""The deterministic mode over random scenarios, and how often the default mode differs in the same ones.

    python -m benchmarks.deterministic [--model NAME] [--scenarios 200] [--seed 0] [--json FILE]

Without --model a tiny random llama is made, which makes 200 scenarios quick.

A scenario is a request with sampling and a seed. It runs alone and cold, then in a crowd of 16 with other chunk sizes, a
warm prefix, a small arena that preempts, and after a restart from disk. Its tokens must be the same everywhere.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

from rvllm_local import LLM, SamplingParams
from rvllm_local.engine.options import EngineOptions

CROWD = 16


def scenarios(count: int, seed: int, vocab: int) -> list[tuple[list[int], SamplingParams]]:
    chance = random.Random(seed)
    shared = [chance.randrange(3, vocab) for _ in range(200)]
    found = []
    for number in range(count):
        length = chance.choice((1, 5, 31, 32, 33, 64, 100, 150, 220))
        prompt = [chance.randrange(3, vocab) for _ in range(length)]
        if chance.random() < 0.4:
            prompt = shared[: chance.choice((33, 64, 130, 200))] + prompt[:40]
        params = SamplingParams(
            max_tokens=chance.choice((8, 24, 48)), temperature=chance.choice((0.0, 0.7, 1.0)), seed=number,
            top_p=chance.choice((1.0, 0.9)), top_k=chance.choice((0, 20)), ignore_eos=True,
            repetition_penalty=chance.choice((1.0, 1.0, 1.1)),
        )  # fmt: skip
        found.append((prompt, params))
    return found


def together(llm: LLM, work: list[tuple[list[int], SamplingParams]]) -> list[tuple[int, ...]]:
    streams = [llm._submit(prompt, params) for prompt, params in work]
    return [tuple(token for event in stream for token in event.token_ids) for stream in streams]


def measure(model: str, count: int, seed: int, *, deterministic: bool) -> dict[str, float]:
    from rvllm_local.models.loader import load_model, locate

    with tempfile.TemporaryDirectory() as folder:

        def engine(**changes: object) -> LLM:
            options = {"kv_memory": 200_000_000, "max_rows": CROWD, "deterministic": deterministic, "cache_dir": folder}
            return LLM.from_options(model, EngineOptions(**{**options, **changes}))  # type: ignore[arg-type]

        vocab = min(40_000, load_model(locate(model)).vocab_size) - 4
        work = scenarios(count, seed, vocab)
        began = time.perf_counter()
        with engine(cache="off", max_rows=CROWD) as llm:
            alone = [together(llm, [one])[0] for one in work]
        seconds = time.perf_counter() - began
        small = 40_000_000 if "smol" in model else 600_000
        runs: dict[str, list[tuple[int, ...]]] = {}
        with engine(cache="disk", prefill_chunk=64) as llm:
            runs["crowd"] = together(llm, work)
            runs["warm"] = together(llm, work[::-1])[::-1]
        with engine(cache="disk", prefill_chunk=32) as llm:
            runs["restart"] = together(llm, work)
        with engine(kv_memory=small, prefill_chunk=128) as llm:
            runs["preempted"] = together(llm, work)
            preemptions = int(llm.stats()["preemptions"])
    differing = {name: sum(a != b for a, b in zip(alone, found, strict=True)) / count for name, found in runs.items()}
    return {"scenarios": count, "preemptions": preemptions, "alone_s": seconds, **differing}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--scenarios", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = args.model
        if model is None:
            from tests.support.tiny import save_tiny

            model = str(save_tiny("llama", Path(folder) / "llama", seed=2))
        results = {
            name: measure(model, args.scenarios, args.seed, deterministic=name == "deterministic")
            for name in ("deterministic", "default")
        }
    print(json.dumps(results, indent=1))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
