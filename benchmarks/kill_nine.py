"""Kills the engine's process at random moments under load: how long until every open request has ended with an error,
and whether the next request works and the disk cache is whole.

    python -m benchmarks.kill_nine [--model NAME] [--moments 50] [--seed 0] [--json FILE]
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

from rvllm_local.clients.contract import make_requests
from rvllm_local.clients.process.client import ProcessClient, Supervision
from rvllm_local.errors import EngineCrashedError
from rvllm_local.models.locate import locate
from rvllm_local.options import EngineOptions
from rvllm_local.types import FinishReason, SamplingParams, StreamEvent


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
    """Greedy tokens of one fixed prompt, long enough to be kept on disk; waits for an engine that is restarting."""
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    while True:
        try:
            return [
                token
                for event in client.submit([5, 6] * 60, params)
                for token in event.token_ids
            ]
        except EngineCrashedError:
            time.sleep(0.05)


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
        client = ProcessClient(str(locate(args.model).path), options, supervision=rules)
        expected = answer(client)
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
