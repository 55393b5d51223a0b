"""The deterministic mode over random scenarios, and how often the default mode differs in the same ones.

    python -m benchmarks.deterministic [--model NAME | --tiny FAMILY [--bits 4]] [--kv-dtype int8] [--modes deterministic default]
                                       [--scenarios 200] [--seed 0] [--json FILE]

Without --model a tiny random llama is made (or another family: gemma3_text and gpt_oss have windows), which makes 200 scenarios
quick.

A scenario is a request with sampling and a seed: filters, penalties, biases, grammars, several choices. It runs alone and cold, then
in a crowd of 16 with other chunk sizes, a warm prefix, a small arena that preempts, and after a restart from disk. Its tokens
must be the same everywhere. For those that differ, the place of the first other token is given.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

from rvllm_local import LLM, SamplingParams
from rvllm_local.clients.contract import make_requests, open_stream
from rvllm_local.options import EngineOptions
from rvllm_local.text.grammar.formats import (
    grammar_for_format,
)

CROWD = 16
LONGEST = 300  # tokens of a scenario, prompt and answer


Scenario = tuple[list[int], SamplingParams, str | None]
Tokens = tuple[tuple[int, ...], ...]  # by choice


def scenarios(count: int, seed: int, vocab: int) -> list[Scenario]:
    chance = random.Random(seed)
    shared = [chance.randrange(3, vocab) for _ in range(200)]
    grammar = grammar_for_format({"type": "regex", "regex": "[a-z ]{4,200}"})
    found: list[Scenario] = []
    for number in range(count):
        length = chance.choice((1, 5, 31, 32, 33, 64, 100, 150, 220))
        prompt = [chance.randrange(3, vocab) for _ in range(length)]
        if chance.random() < 0.4:
            prompt = shared[: chance.choice((33, 64, 130, 200))] + prompt[:40]
        params = SamplingParams(
            max_tokens=chance.choice((8, 24, 48)), temperature=chance.choice((0.0, 0.7, 1.0)), seed=number,
            top_p=chance.choice((1.0, 0.9)), top_k=chance.choice((0, 20)), min_p=chance.choice((0.0, 0.0, 0.02)),
            repetition_penalty=chance.choice((1.0, 1.0, 1.1)), logit_bias=chance.choice(({}, {}, {7: 3.0, 9: -5.0})),
            n=chance.choice((1, 1, 1, 3)), ignore_eos=True,
        )  # fmt: skip
        found.append((prompt, params, grammar if chance.random() < 0.15 else None))
    return found


def together(llm: LLM, work: list[Scenario]) -> list[Tokens]:
    streams = []
    for prompt, params, grammar in work:
        requests = make_requests(tuple(prompt), params, grammar=grammar)
        streams.append(open_stream(llm._client, requests))
    found = []
    for stream, (_, params, _) in zip(streams, work, strict=True):
        choices: list[list[int]] = [[] for _ in range(params.n)]
        for event in stream:
            choices[event.index].extend(event.token_ids)
        found.append(tuple(map(tuple, choices)))
    return found


def measure(
    model: str, count: int, seed: int, kv_dtype: str, *, deterministic: bool
) -> dict[str, object]:
    from rvllm_local.models.loader import load_model
    from rvllm_local.models.locate import locate

    model = str(locate(model).path)
    with tempfile.TemporaryDirectory() as folder:

        def engine(**changes: object) -> LLM:
            options = {
                "kv_memory": 200_000_000,
                "max_rows": CROWD,
                "deterministic": deterministic,
                "cache_dir": folder,
            }
            options |= {"kv_dtype": kv_dtype, "max_waiting": 10 * count, **changes}
            return LLM.from_options(model, EngineOptions(**options))  # type: ignore[arg-type]

        vocab = min(40_000, load_model(locate(model)).vocab_size) - 4
        work = scenarios(count, seed, vocab)
        began = time.perf_counter()
        with engine(cache="off", max_rows=CROWD) as llm:
            alone = [together(llm, [one])[0] for one in work]
        seconds = time.perf_counter() - began
        small = (40_000_000 if "smol" in model else 600_000) // (
            4 if kv_dtype == "int8" else 1
        )
        runs: dict[str, list[Tokens]] = {}
        with engine(cache="disk", prefill_chunk=64) as llm:
            runs["crowd"] = together(llm, work)
            runs["warm"] = together(llm, work[::-1])[::-1]
        with engine(cache="disk", prefill_chunk=32) as llm:
            runs["restart"] = together(llm, work)
        preemptions = 0
        while "preempted" not in runs:
            with engine(kv_memory=small, prefill_chunk=128) as llm:
                if llm._client.limits.arena_tokens < LONGEST:
                    small += small // 2
                    continue
                runs["preempted"] = together(llm, work)
                preemptions = int(llm.stats()["preemptions"])
    answers = sum(len(choices) for choices in alone)
    tokens = sum(len(choice) for choices in alone for choice in choices)
    return {
        "scenarios": count, "answers": answers, "tokens": tokens, "preemptions": preemptions, "alone_s": seconds,
        **{name: differences(alone, found) for name, found in runs.items()},
    }  # fmt: skip


def differences(alone: list[Tokens], found: list[Tokens]) -> dict[str, object]:
    """How many answers differ, and at which token each first does."""
    pairs = [
        pair
        for a, b in zip(alone, found, strict=True)
        for pair in zip(a, b, strict=True)
    ]
    places = [
        next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), -1)
        for a, b in pairs
        if a != b
    ]
    return {"differing": len(places), "first_at": sorted(places)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model")
    parser.add_argument("--tiny", default="llama")
    parser.add_argument("--bits", type=int, help="quantized weights of a tiny model")
    parser.add_argument("--kv-dtype", default="auto")
    parser.add_argument("--modes", nargs="+", default=["deterministic", "default"])
    parser.add_argument("--scenarios", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = args.model
        if model is None:
            from tests.support.tiny import save_tiny

            path = Path(folder) / args.tiny
            model = str(save_tiny(args.tiny, path, seed=2, bits=args.bits))
        results = {
            mode: measure(
                model,
                args.scenarios,
                args.seed,
                args.kv_dtype,
                deterministic=mode == "deterministic",
            )
            for mode in args.modes
        }
    print(json.dumps(results, indent=1))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
