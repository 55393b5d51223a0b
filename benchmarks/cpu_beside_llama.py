"""Streams and prompts on a CPU, beside llama.cpp's server on the same GGUF file.

    python -m benchmarks.cpu_beside_llama [--rounds 3] [--json FILE]

Both servers run in processes of their own, one at a time, and rounds alternate between them. A
round asks for 1, 8 and 16 streams of 200 tokens and for one token after prompts of 512 and 2,048
tokens that nobody has seen. Printed are medians of tokens/s, and the ratios. llama.cpp gets its
best settings: as many threads as cores, as many slots as streams, one KV cache for all slots.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.peers.llama_server import LlamaServer
from benchmarks.peers.process import ServerProcess
from benchmarks.peers.rvllm_server import RvllmServer
from rvllm_local.bench import record
from rvllm_local.models.locate import locate

STREAMS = (1, 8, 16)
PROMPTS = (512, 2048)
TOKENS = 200
_SLOTS = 16
_CONTEXT = 32_768
_TIMEOUT_S = 300.0
_BODY = {"temperature": 0, "ignore_eos": True, "stream": True}

Start = Callable[[], AbstractContextManager[ServerProcess]]


def starters(model: str) -> dict[str, Start]:
    """How each server is started."""
    gguf = locate(model).path
    threads = str(os.cpu_count() or 1)
    options = ["--parallel", str(_SLOTS), "--ctx-size", str(_CONTEXT), "--kv-unified"]
    options += ["--threads", threads, "--threads-batch", threads]
    return {
        "rvllm": lambda: RvllmServer(model),
        "llama.cpp": lambda: LlamaServer(gguf, *options),
    }


def prompt(length: int, seed: str) -> list[int]:
    """Valid token ids, no two prompts alike from their first token on."""
    draw = random.Random(seed)
    return [draw.randrange(1_000, 40_000) for _ in range(length)]


async def _stream(
    client: httpx.AsyncClient,
    body: dict[str, Any],
) -> tuple[float, float]:
    """When the first and when the last piece of an answer came."""
    times: list[float] = []
    async with client.stream("POST", "completions", json=body) as response:
        if response.status_code != 200:
            raise SystemExit((await response.aread()).decode())
        async for line in response.aiter_lines():
            if line.startswith("data:"):
                times.append(time.perf_counter())
    return times[0], times[-1]


async def _together(
    server: ServerProcess,
    prompts: list[list[int]],
    tokens: int,
) -> list[tuple[float, float]]:
    limits = httpx.Limits(max_connections=None)
    base = server.url + "/"
    async with httpx.AsyncClient(
        base_url=base, timeout=_TIMEOUT_S, limits=limits, trust_env=False
    ) as client:
        bodies = [
            {**_BODY, "model": server.model, "prompt": ids, "max_tokens": tokens}
            for ids in prompts
        ]
        return list(await asyncio.gather(*(_stream(client, body) for body in bodies)))


def streams(
    server: ServerProcess,
    count: int,
    seed: str,
) -> float:
    """Tokens/s of all streams, from the first token of the first to the last of the last."""
    prompts = [prompt(48, f"{seed} {row}") for row in range(count)]
    times = asyncio.run(_together(server, prompts, TOKENS))
    began = min(first for first, _ in times)
    ended = max(last for _, last in times)
    return count * (TOKENS - 1) / (ended - began)


def reading(
    server: ServerProcess,
    length: int,
    seed: str,
) -> float:
    """Prompt tokens/s until the answer of one token has ended.

    A stream's first line may come before its prompt was read.
    """
    began = time.perf_counter()
    ((_, last),) = asyncio.run(_together(server, [prompt(length, seed)], 1))
    return length / (last - began)


def measure(server: ServerProcess, number: int) -> dict[str, float]:
    """One round at one server: tokens/s by name."""
    streams(server, 2, f"warm {number}")
    found: dict[str, float] = {}
    for count in STREAMS:
        found[f"{count} streams"] = streams(server, count, f"{number} {count}")
    for length in PROMPTS:
        found[f"prompt of {length}"] = reading(server, length, f"{number} p{length}")
    return found


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    samples: dict[str, dict[str, list[float]]] = {}
    for number in range(arguments.rounds):
        for name, start in starters(arguments.model).items():
            with start() as server:
                for case, rate in measure(server, number).items():
                    samples.setdefault(case, {}).setdefault(name, []).append(rate)
                    print(f"{number} {name:10} {case:16} {rate:8.1f}", flush=True)
    for case, rates in samples.items():
        medians = {name: statistics.median(values) for name, values in rates.items()}
        ratio = medians["rvllm"] / medians["llama.cpp"]
        cells = "  ".join(f"{name} {rate:8.1f}" for name, rate in medians.items())
        print(f"{case:16} {cells}  {ratio:.2f}x")
    if arguments.json:
        head = {"machine": record.machine(), "versions": record.versions()}
        arguments.json.write_text(json.dumps({**head, "samples": samples}, indent=1))


if __name__ == "__main__":
    main()
