"""Thousands of mixed requests: does memory grow, does anything leak, does every request end?

    python -m benchmarks.many_requests [--model FOLDER_OR_NAME] [--requests 5000] [--kv-memory 8MB] [--seed 0]
                                       [--json FILE]

Lengths from 1 to 4,000 tokens, cancels, shared prefixes, choices, penalties, log-probabilities, seeds and priorities, all
at once over one engine in this process. Without --model a tiny random llama with a context of 8,192 is made; the default arena
holds little more than one of the longest requests, so that many are preempted.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from rvllm_local import LLM, SamplingParams
from rvllm_local.clients.contract import make_requests
from rvllm_local.models.locate import locate
from rvllm_local.option import parse_bytes
from rvllm_local.options import EngineOptions
from rvllm_local.types import StreamEvent

OPEN = 48  # requests kept open at a time


class Watched:
    """Counts the ends of one request's choices into `ends`, which all requests share, so that nothing here grows."""

    def __init__(
        self, choices: int, slots: threading.Semaphore, ends: Counter[str]
    ) -> None:
        self.left, self.slots, self.ends = choices, slots, ends

    def __call__(self, event: StreamEvent) -> None:
        if event.finish_reason is not None:
            self.ends[event.finish_reason.value] += 1
            self.left -= 1
            if self.left == 0:
                self.slots.release()


def resident() -> int:
    """Bytes of this process in memory now."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this measurement reads /proc/self/status")


def one(
    chance: random.Random, prefixes: list[list[int]], vocab: int
) -> tuple[list[int], SamplingParams]:
    """A random request: prompt and parameters."""
    length = min(4000, int(chance.paretovariate(0.6)) + chance.randint(0, 60))
    prompt = [chance.randrange(3, vocab) for _ in range(length)]
    if chance.random() < 0.5:
        prefix = chance.choice(prefixes)
        prompt = (prefix + prompt)[: max(length, chance.randint(1, len(prefix)))]
    params = SamplingParams(
        max_tokens=min(4000, int(chance.paretovariate(0.6)) + 1), ignore_eos=chance.random() < 0.5,
        temperature=chance.choice((0.0, 0.7, 1.3)), top_p=chance.choice((1.0, 0.9)), top_k=chance.choice((0, 0, 40)),
        min_p=chance.choice((0.0, 0.05)), seed=chance.choice((None, chance.randrange(1000))),
        n=chance.choice((1, 1, 1, 1, 3)), logprobs=chance.choice((None, None, 0, 3)),
        presence_penalty=chance.choice((0.0, 0.0, 0.5)), repetition_penalty=chance.choice((1.0, 1.0, 1.1)),
        logit_bias=chance.choice(({}, {5: 2.0})), stop=chance.choice(((), ("zz", "the"))),
    )  # fmt: skip
    return prompt, params


def run(llm: LLM, count: int, seed: int, vocab: int) -> dict[str, object]:
    import mlx.core as mx

    chance, slots = random.Random(seed), threading.Semaphore(OPEN)
    prefixes = [
        [chance.randrange(3, vocab) for _ in range(chance.choice((64, 500, 2000)))]
        for _ in range(20)
    ]
    llm.generate([[5] * 100] * 4, SamplingParams(max_tokens=4, seed=1))
    idle = mx.get_active_memory()
    samples: list[tuple[int, int, int]] = []
    ends: Counter[str] = Counter()
    choices = 0
    cancels: list[threading.Timer] = []
    began = time.perf_counter()
    for number in range(count):
        prompt, params = one(chance, prefixes, vocab)
        slots.acquire()
        requests = make_requests(
            prompt, params, priority=chance.choice((0, 0, 0, 1, -1))
        )
        sink = Watched(params.n, slots, ends)
        choices += params.n
        llm._client.start(requests, sink)
        if chance.random() < 0.1:
            timer = threading.Timer(
                chance.uniform(0, 0.3), llm._client.cancel, (requests[0].request_id,)
            )
            timer.start()
            cancels.append(timer)
        if number % 50 == 49:
            samples.append((number + 1, resident(), mx.get_active_memory()))
            cancels = [timer for timer in cancels if timer.is_alive()]
    for _ in range(OPEN):
        slots.acquire()
    for timer in cancels:
        timer.join()
    stats = llm.stats()
    llm._client._loop.call(lambda core: core.check_integrity())
    warm = samples[len(samples) // 5 :]  # the first fifth warms up
    return {
        "requests": count, "seconds": time.perf_counter() - began,
        "unended": choices - ends.total(), "ends": dict(ends), "curve": [sample[1] >> 10 for sample in samples[::5]],
        "resident_after_warm_up": warm[0][1], "resident_max_later": max(sample[1] for sample in warm),
        "resident_growth": max(sample[1] for sample in warm) / warm[0][1] - 1,
        "resident_end": resident(), "active_growth": mx.get_active_memory() - idle,
        "blocks_lost": int(stats["blocks_total"]) - int(stats["blocks_free"]), "preemptions": stats["preemptions"],
        "prefix_hit_tokens": stats["prefix_hit_tokens"], "generated_tokens": stats["generated_tokens"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--kv-memory", type=parse_bytes, default=8_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = args.model
        if model is None:
            from tests.support.tiny import save_tiny

            path = save_tiny("llama", Path(folder) / "llama", seed=2)
            config = json.loads((path / "config.json").read_text(encoding="utf-8"))
            (path / "config.json").write_text(
                json.dumps({**config, "max_position_embeddings": 8192}),
                encoding="utf-8",
            )
            model = str(path)
        else:
            model = str(locate(model).path)
        options = EngineOptions(
            kv_memory=args.kv_memory,
            max_rows=16,
            prefill_chunk=256,
            cache_dir=folder,
            max_waiting=1000,
        )
        with LLM.from_options(model, options) as llm:
            result = run(llm, args.requests, args.seed, llm._client.limits.vocab_size)
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
