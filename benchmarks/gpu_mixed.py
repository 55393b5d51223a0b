"""64 mixed requests through the engine beside mlx-lm's BatchGenerator on a GPU: throughput, first tokens, and gaps.

    python benchmarks/gpu_mixed.py [--json FILE] [--requests 64] [--chunk 512] [--only engine|peer] [--shape 8b|1b]

Llama-3.1-8B's shape with random bfloat16 weights: right for speed, meaningless as text. All requests arrive at once;
prompts have 64 to 4,096 tokens and answers 32 to 512, both spread evenly over their logarithms. Each side runs in a
process of its own, with one run of other lengths before the measured one. A gap is the time between two tokens of one
request as its reader sees them; P99 is over all gaps of all requests.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import bootstrap

bootstrap.prepare()

import rvllm_local  # noqa: F401, I001  (first: it prepares the process for MLX)

import mlx_lm  # noqa: F401  (the real package: its generator is the peer)
import numpy as np
from mlx_lm.generate import BatchGenerator

from benchmarks import gpu_record
from benchmarks.gpu_decode import SHAPES, NoText, forget_settings, loaded_shape
from rvllm_local.bench.metrics import Figure, spread
from rvllm_local.bench.text_table import show
from rvllm_local.engine.startup.build import EngineOptions, build_core
from rvllm_local.engine.report import percentile
from rvllm_local.types import Request, SamplingParams, StreamEvent

_NAMES = {"peer": "mlx-lm", "engine": "rvllm"}
PROMPTS, ANSWERS = (64, 4096), (32, 512)
Times = list[list[float]]  # when each token of each request came


def requests(count: int, seed: int) -> list[tuple[list[int], int]]:
    """Prompts and the lengths of their answers."""
    random = np.random.default_rng(seed)
    spread = [
        np.exp(random.uniform(np.log(low), np.log(high), count)).astype(int)
        for low, high in (PROMPTS, ANSWERS)
    ]
    return [
        (random.integers(0, 128256, size).tolist(), int(answer))
        for size, answer in zip(*spread, strict=True)
    ]


def engine_times(core: Any, work: list[tuple[list[int], int]]) -> Times:
    times: Times = [[] for _ in work]
    for index, (prompt, answer) in enumerate(work):
        params = SamplingParams(max_tokens=answer, temperature=0, ignore_eos=True)
        core.add(
            Request(f"row {index}", tuple(prompt), params, seed=0),
            functools.partial(note, times[index]),
        )
    while core.has_work:
        core.step()
    return times


def note(times: list[float], event: StreamEvent) -> None:
    times.extend([time.perf_counter()] * len(event.token_ids))


def peer_times(model: Any, work: list[tuple[list[int], int]]) -> Times:
    generator = BatchGenerator(model, completion_batch_size=len(work))
    uids = generator.insert(
        [prompt for prompt, _ in work], [answer for _, answer in work]
    )
    times: dict[int, list[float]] = {uid: [] for uid in uids}
    left = set(uids)
    while left:
        for response in generator.next_generated():
            times[response.uid].append(time.perf_counter())
            if response.finish_reason is not None:
                left.discard(response.uid)
    generator.close()
    return [times[uid] for uid in uids]


def measured(run: Any, work: list[tuple[list[int], int]]) -> dict[str, float]:
    """One run's figures: tokens/s of answers, and milliseconds."""
    began = time.perf_counter()
    times = run(work)
    seconds = max(row[-1] for row in times) - began
    assert [len(row) for row in times] == [answer for _, answer in work], (
        "an answer has another length"
    )
    first = sorted((row[0] - began) * 1e3 for row in times)
    gaps = sorted(
        (later - earlier) * 1e3
        for row in times
        for earlier, later in itertools.pairwise(row)
    )
    return {
        "seconds": seconds,
        "tokens_per_s": sum(len(row) for row in times) / seconds,
        "all_tokens_per_s": (
            sum(len(row) for row in times) + sum(len(prompt) for prompt, _ in work)
        )
        / seconds,
        "ttft_p50": percentile(first, 0.5),
        "ttft_p99": percentile(first, 0.99),
        "gap_p50": percentile(gaps, 0.5),
        "gap_p99": percentile(gaps, 0.99),
        "gap_max": gaps[-1],
    }


def one_side(side: str, args: argparse.Namespace) -> list[dict[str, float]]:
    loaded = loaded_shape(SHAPES[args.shape])
    work, warm = requests(args.requests, 1), requests(args.requests, 2)
    if side == "peer":
        run = functools.partial(peer_times, loaded.module)
    else:
        per_token = (
            2 * 8 * loaded.config["head_dim"] * 2 * loaded.config["num_hidden_layers"]
        )
        room = int(
            1.2 * per_token * sum(len(prompt) + answer + 64 for prompt, answer in work)
        )
        options = EngineOptions(
            kv_memory=room,
            max_rows=args.requests,
            prefill_chunk=args.chunk,
            cache="off",
        )
        run = functools.partial(engine_times, build_core(loaded, NoText(), options))
    run(warm)
    return [measured(run, work) for _ in range(args.rounds)]


def apart(side: str, arguments: list[str]) -> list[dict[str, float]]:
    """One side in a process of its own; the peer with MLX's own settings, not with those that the engine makes."""
    command = [sys.executable, __file__, "--side", side, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: list[dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="8b")
    parser.add_argument("--only", choices=("engine", "peer"))
    parser.add_argument("--side", choices=("engine", "peer"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side == "peer":
        forget_settings()
    if args.side:
        print(json.dumps(one_side(args.side, args)))
        return
    shared = [
        "--requests",
        str(args.requests),
        "--chunk",
        str(args.chunk),
        "--shape",
        args.shape,
        "--rounds",
        str(args.rounds),
    ]
    sides = [args.only] if args.only else ["peer", "engine"]
    found = {side: apart(side, shared) for side in sides}
    runs = {_NAMES[side]: stats_of(rounds) for side, rounds in found.items()}
    for name in next(iter(runs.values())):
        line = "".join(f"{show(run[name]):>18}" for run in runs.values())
        ratio = (
            f"{runs['rvllm'][name].value / runs['mlx-lm'][name].value:>10.2f}x"
            if len(runs) == 2
            else ""
        )
        print(f"{name:<18}{line}{ratio}", flush=True)
    if args.json:
        gpu_record.save(args.json, "gpu mixed", runs, rounds=found)


def stats_of(rounds: list[dict[str, float]]) -> dict[str, Figure]:
    """Medians of the rounds, with seconds where `measured` has milliseconds."""
    found = {"seconds": spread([one["seconds"] for one in rounds], "s")}
    for name in ("tokens_per_s", "all_tokens_per_s"):
        found[name] = spread([one[name] for one in rounds], "tokens/s", "higher")
    for name in ("ttft_p50", "ttft_p99", "gap_p50", "gap_p99", "gap_max"):
        found[name] = spread([one[name] / 1e3 for one in rounds], "s")
    return found


if __name__ == "__main__":
    main()
