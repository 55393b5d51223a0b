"""Time to first token of a 2,000-token prefix: cold, warm in memory, and warm from disk in a new process.

python -m benchmarks.warm_prefix [--model NAME] [--tokens 2000] [--rounds 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

from rvllm_local import host
from rvllm_local.clients.process.client import ProcessClient
from rvllm_local.models.locate import locate
from rvllm_local.options import EngineOptions
from rvllm_local.types import SamplingParams

ONE = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)


def row(length: int, seed: int) -> list[int]:
    return [100 + (seed * 7919 + index * 31) % 40_000 for index in range(length)]


def ttft(client: ProcessClient, prompt: list[int]) -> float:
    began = time.perf_counter()
    next(client.submit(prompt, ONE))
    return time.perf_counter() - began


def measure(model: str, tokens: int, rounds: int) -> dict[str, float]:
    samples: dict[str, list[float]] = {"cold": [], "memory": [], "disk": []}
    model = str(locate(model).path)
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            options = EngineOptions(
                kv_memory=300_000_000, cache="disk", cache_dir=folder
            )
            prefix = row(tokens, number)
            first = ProcessClient(model, options)
            ttft(first, row(100, 99))
            samples["cold"].append(ttft(first, [*prefix, *row(20, 1)]))
            samples["memory"].append(ttft(first, [*prefix, *row(20, 2)]))
            first.close()
            second = ProcessClient(model, options)
            ttft(second, row(100, 98))
            samples["disk"].append(ttft(second, [*prefix, *row(20, 3)]))
            second.close()
    return {name: statistics.median(values) for name, values in samples.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    medians = measure(args.model, args.tokens, args.rounds)
    print(
        f"{platform.machine()}, {host.prepare().blas}; medians of {args.rounds} rounds, {args.tokens}-token prefix"
    )
    for name, value in medians.items():
        print(f"{name:8} {value * 1e3:9.1f} ms   {value / medians['cold']:.3f} of cold")
    if args.json:
        args.json.write_text(
            json.dumps({"machine": platform.platform(), **medians}, indent=1),
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
