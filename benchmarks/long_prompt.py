"""Four streams run, and a 6,000-token prompt comes: what it does to them, and to a short prompt that comes meanwhile.

    python -m benchmarks.long_prompt [--model NAME] [--long 6000] [--json FILE] [--no-peer]

The same situation for the engine (in its own process) and for mlx-lm's server, one after the other in one run. An idle
value is taken from the same four streams before the long prompt comes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.peers.mlx_lm_server import MlxLmServer, plain_folder
from rvllm_local import host
from rvllm_local.clients.process.client import ProcessClient
from rvllm_local.engine.report import percentile
from rvllm_local.options import EngineOptions
from rvllm_local.types import SamplingParams

WORDS = (
    "river",
    "stone",
    "window",
    "paper",
    "green",
    "under",
    "seven",
    "house",
    "never",
    "light",
    "about",
    "north",
)
STREAMS, IDLE_S, SHORT_AFTER_S = 4, 12.0, 2.0
Complete = Callable[[str, int], Iterator[float]]


def words(count: int, seed: int) -> str:
    return " ".join(
        WORDS[(seed * 5 + index * index + index // 7) % len(WORDS)]
        for index in range(count)
    )


class Stream(threading.Thread):
    """One streamed request; `times` are when its tokens came."""

    def __init__(self, complete: Complete, prompt: str, max_tokens: int) -> None:
        super().__init__(daemon=True)
        self.complete, self.prompt, self.max_tokens = complete, prompt, max_tokens
        self.began, self.times = time.perf_counter(), list[float]()
        self.first = threading.Event()
        self.stopping = False

    def run(self) -> None:
        for when in self.complete(self.prompt, self.max_tokens):
            self.times.append(when)
            self.first.set()
            if self.stopping:
                return

    def ttft(self) -> float:
        self.first.wait()
        return self.times[0] - self.began


def gaps(streams: list[Stream], start: float, end: float) -> list[float]:
    """Inter-token times that end between `start` and `end`; a stream that stood still counts up to `end`."""
    found = []
    for stream in streams:
        times = [*stream.times, end]
        found += [b - a for a, b in itertools.pairwise(times) if start < b < end]
        found += (
            [end - stream.times[-1]]
            if end - stream.times[-1] > max(found, default=0)
            else []
        )
    return sorted(found)


def situation(complete: Complete, long_tokens: int) -> dict[str, float]:
    streams = [Stream(complete, words(24, seed), 4000) for seed in range(STREAMS)]
    for stream in streams:
        stream.start()
        stream.first.wait()
    settled = time.perf_counter()
    time.sleep(IDLE_S)
    idle = gaps(streams, settled, time.perf_counter())
    came = time.perf_counter()
    long = Stream(complete, words(long_tokens, 9), 1)
    long.start()
    time.sleep(SHORT_AFTER_S)
    short = Stream(complete, words(16, 11), 1)
    short.start()
    short_ttft, long_ttft = short.ttft(), long.ttft()
    busy = gaps(streams, came, came + long_ttft)
    for stream in streams:
        stream.stopping = True
    for stream in streams:
        stream.join(60)
    return {
        "idle_itl_p50": percentile(idle, 0.5) or 0, "idle_itl_p99": percentile(idle, 0.99) or 0,
        "busy_itl_p50": percentile(busy, 0.5) or 0, "busy_itl_p99": percentile(busy, 0.99) or 0,
        "busy_itl_max": max(busy, default=0), "long_ttft": long_ttft, "short_ttft": short_ttft,
    }  # fmt: skip


def engine(model: str, long_tokens: int) -> dict[str, float]:
    from rvllm_local.models.locate import locate
    from rvllm_local.text.tokenizer_files import read_tokenizer

    tokenizer = read_tokenizer(locate(model))
    client = ProcessClient(model, EngineOptions(kv_memory=700_000_000))

    def complete(prompt: str, max_tokens: int) -> Iterator[float]:
        params = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
        with client.submit(tokenizer.encode(prompt), params) as stream:
            for _ in stream:
                yield time.perf_counter()

    try:
        list(complete(words(600, 1), 4))  # warm: kernels, speed estimates
        return situation(complete, long_tokens)
    finally:
        client.close()


def peer(model: str, long_tokens: int) -> dict[str, float]:
    with (
        tempfile.TemporaryDirectory() as folder,
        MlxLmServer(plain_folder(model, Path(folder))) as server,
    ):
        list(server.complete(words(600, 1), 4))
        return situation(server.complete, long_tokens)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--long", type=int, default=6000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--no-peer", action="store_true")
    args = parser.parse_args()
    results = {"rvllm": engine(args.model, args.long)}
    if not args.no_peer:
        results["mlx-lm server"] = peer(args.model, args.long)
    print(
        f"{platform.machine()}, {host.prepare().blas}; seconds; a prompt of {args.long} words beside {STREAMS} streams"
    )
    names = list(results["rvllm"])
    print("| | " + " | ".join(names) + " |\n|---" * 1 + "|---" * len(names) + "|")
    for name, row in results.items():
        print(
            f"| {name} | " + " | ".join(f"{row[column]:.3f}" for column in names) + " |"
        )
    ours = results["rvllm"]
    print(
        f"P99 inter-token latency beside the long prompt: {ours['busy_itl_p99'] / ours['idle_itl_p99']:.2f}x idle"
    )
    if "mlx-lm server" in results:
        print(
            f"short prompt's TTFT: {ours['short_ttft'] / results['mlx-lm server']['short_ttft']:.3f} of mlx-lm's"
        )
    if args.json:
        args.json.write_text(
            json.dumps({"machine": platform.platform(), **results}, indent=1),
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
