"""What the engine's own process costs: decode tokens/s in this process and in a child, alternating, same model and requests.

python benchmarks/process_overhead.py [--model NAME] [--streams 1 8] [--tokens 64] [--rounds 3]
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time

from rvllm_local import LLM
from rvllm_local.clients.contract import Client, make_requests
from rvllm_local.clients.process.client import ProcessClient
from rvllm_local.options import EngineOptions
from rvllm_local.types import SamplingParams, StreamEvent

KV_MEMORY = 128_000_000


def tokens_per_second(client: Client, streams: int, tokens: int) -> float:
    """Decode speed over all streams, from the first token of the last stream to the end of all."""
    lock, done = threading.Lock(), threading.Event()
    first: dict[int, float] = {}
    counted = ended = 0

    def sink_of(stream: int) -> object:
        def sink(event: StreamEvent) -> None:
            nonlocal counted, ended
            with lock:
                first.setdefault(stream, time.perf_counter())
                counted += len(event.token_ids) if len(first) == streams else 0
                ended += event.finish_reason is not None
                if ended == streams:
                    done.set()

        return sink

    params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
    for stream in range(streams):
        client.start(make_requests([5 + stream, 6, 7], params), sink_of(stream))  # type: ignore[arg-type]
    done.wait()
    return counted / (time.perf_counter() - max(first.values()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    own = ProcessClient(arguments.model, EngineOptions(kv_memory=KV_MEMORY))
    with LLM(arguments.model, kv_memory=KV_MEMORY) as llm:
        for streams in arguments.streams:
            speeds: dict[str, list[float]] = {"in-process": [], "own process": []}
            for _ in range(arguments.rounds):
                for name, client in (("in-process", llm._client), ("own process", own)):
                    speeds[name].append(
                        tokens_per_second(client, streams, arguments.tokens)
                    )
            medians = {name: statistics.median(found) for name, found in speeds.items()}
            figures = ", ".join(
                f"{name} {value:.1f} tokens/s" for name, value in medians.items()
            )
            print(
                f"{streams} streams: {figures}, ratio {medians['own process'] / medians['in-process']:.3f}"
            )
    own.close()


if __name__ == "__main__":
    main()
