"""Kills the engine's process at random moments under load: how long until every open request has ended with an error,
and whether the next request works and the disk cache is whole.

    python -m benchmarks.kill_nine [--model NAME | --hybrid ARCHITECTURE] [--moments 50] [--seed 0] [--json FILE]

With --hybrid it is a tiny random model with recurrent layers, and the prompts of a conversation that goes on: an answer
from a wrong state would differ from the first, which was computed without a cache.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import tempfile
import threading
import time
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from msgspec.structs import replace

import rvllm_local  # noqa: F401  (first: it prepares the process for MLX)
from rvllm_local.clients.contract import make_requests
from rvllm_local.clients.process.client import ProcessClient, Supervision
from rvllm_local.errors import EngineCrashedError
from rvllm_local.models.locate import locate
from rvllm_local.options import EngineOptions
from rvllm_local.types import FinishReason, SamplingParams, StreamEvent
from tests.support.tiny import save_tokenizer
from tests.support.zoo import zoo_model


class Watched:
    """A request's sink."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.when, self.reason = 0.0, None

    def __call__(self, event: StreamEvent) -> None:
        if event.finish_reason is not None:
            self.when, self.reason = time.monotonic(), event.finish_reason
            self.ended.set()


def answer(client: ProcessClient) -> list[int]:
    """Greedy tokens of three turns, long enough to be kept on disk; waits for an engine that is restarting."""
    conversation = [5, 6] * 60
    tokens: list[int] = []
    for turn in range(3):
        reply = one_answer(client, conversation)
        tokens += reply
        conversation = [*conversation, *reply, *[7 + turn] * 40]
    return tokens


def one_answer(client: ProcessClient, prompt: list[int]) -> list[int]:
    """Greedy tokens of one prompt."""
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    while True:
        try:
            return [
                token
                for event in client.submit(prompt, params)
                for token in event.token_ids
            ]
        except EngineCrashedError:
            time.sleep(0.05)


def save_hybrid(arch: str, folder: Path) -> str:
    """Write a tiny model with recurrent layers. Returns its folder."""
    model, config = zoo_model(arch)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    save_tokenizer(folder)
    return str(folder)


def kill(client: ProcessClient) -> tuple[int, float]:
    """kill -9 of the running process, loading or not; returns its id and the moment."""
    while (pid := client.health().pid) is None:
        time.sleep(0.001)
    killed = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    return pid, killed


def one_moment(
    client: ProcessClient, chance: random.Random, situation: str, expected: list[int]
) -> tuple[float, float]:
    """Kill once; seconds until the last open request ended, and until the next request had its answer."""
    watched = []
    if situation == "loading":
        pid, _ = kill(client)
        while client.health().pid in (None, pid):
            time.sleep(0.001)
    if situation == "idle":  # what is cached is being written to disk
        answer(client)
    for _ in range(chance.randint(1, 8) if situation == "busy" else 0):
        sink = Watched()
        prompt = [chance.randint(3, 60) for _ in range(chance.choice((5, 60, 400)))]
        client.start(
            make_requests(prompt, SamplingParams(max_tokens=400, ignore_eos=True)), sink
        )
        watched.append(sink)
    time.sleep(chance.uniform(0, 0.6 if situation == "busy" else 0.2))
    pid, killed = kill(client)
    for sink in watched:
        if not sink.ended.wait(10):
            raise SystemExit("a request did not end within 10 s")
    last = max(
        (sink.when for sink in watched if sink.reason is FinishReason.ERROR),
        default=killed,
    )
    while (
        client.health().pid == pid
    ):  # where nothing was open, the end may not have been noticed yet
        time.sleep(0.001)
    if (tokens := answer(client)) != expected:
        raise SystemExit(f"the next request gave {tokens} instead of {expected}")
    return last - killed, time.monotonic() - killed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--hybrid", metavar="ARCHITECTURE")
    parser.add_argument("--moments", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        options = EngineOptions(
            kv_memory=200_000_000,
            cache="disk",
            cache_dir=folder,
            disk_cache_bytes=10**9,
        )
        rules = Supervision(
            wait_s=60.0,
            most_restarts=3 * args.moments,
            backoff_s=0.01,
            most_backoff_s=0.05,
        )
        model = str(locate(args.model).path) if args.hybrid is None else ""
        if args.hybrid is not None:
            model = save_hybrid(args.hybrid, Path(folder) / "model")
        uncached = ProcessClient(model, replace(options, cache="off"))
        expected = answer(uncached)
        uncached.close()
        client = ProcessClient(model, options, supervision=rules)
        if answer(client) != expected:
            raise SystemExit("the first answers differ from those without a cache")
        situations = [
            ("busy", "busy", "busy", "idle", "loading")[number % 5]
            for number in range(args.moments)
        ]
        times = [
            one_moment(client, chance, situation, expected) for situation in situations
        ]
        left = len(list(Path(folder).rglob("*.tmp")))
        blocks = len(list(Path(folder).rglob("*.kv")))
        client.close()
    errors, again = zip(*times, strict=True)
    result = {
        "moments": args.moments, "error_s_max": max(errors), "error_s_median": statistics.median(errors),
        "answer_again_s_max": max(again), "answer_again_s_median": statistics.median(again),
        "blocks_on_disk": blocks, "temporary_files": left,
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
