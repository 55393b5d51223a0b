"""Kills or stops a rank of a job at random moments: how long until every open request has ended with an error, whether the
job comes back by itself, and whether the answers after it are right.

    python -m benchmarks.kill_ranks [--ranks 2] [--moments 30] [--family llama] [--pipeline] [--seed 0] [--json FILE]

Each moment takes one rank (in turn) and SIGKILL or SIGSTOP (in turn), while one to four requests run, or while the job
loads. A stopped process is killed once the job has noticed. Prints a line a moment; ends with status 1 at a wrong answer,
an error later than 5 s, or a process that is left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import rvllm_local  # noqa: F401  (first: it prepares the process for MLX)
from rvllm_local import LLM, SamplingParams
from rvllm_local.clients.contract import make_requests
from rvllm_local.clients.process.client import ProcessClient, Supervision
from rvllm_local.errors import EngineCrashedError
from rvllm_local.options import EngineOptions
from rvllm_local.types import FinishReason, StreamEvent
from tests.support.ranks import followers_of, save_for_ranks

LATEST_ERROR_S = 5.0
PROMPT = [5, 6, 7] * 15
SHORT = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
LONG = SamplingParams(max_tokens=1500, temperature=0, ignore_eos=True)
KV_MEMORY = 16 * 2**20


@dataclass(frozen=True)
class Moment:
    """What was done, and seconds until the last error and the next right answer."""

    rank: int
    signal: str
    situation: str
    error_s: float
    answer_s: float
    message: str


class Watched:
    """A request's sink."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.ended = threading.Event()
        self.when = 0.0
        self.reason: FinishReason | None = None

    def __call__(self, event: StreamEvent) -> None:
        self.began.set()
        if event.finish_reason is not None:
            self.when = time.monotonic()
            self.reason = event.finish_reason
            self.ended.set()


def answer(client: ProcessClient) -> list[int]:
    """Greedy tokens of one prompt; waits for a job that is starting again."""
    while True:
        tokens: list[int] = []
        try:
            for event in client.submit(PROMPT, SHORT):
                tokens.extend(event.token_ids)
            return tokens
        except EngineCrashedError:
            time.sleep(0.05)


def process_of(client: ProcessClient, rank: int) -> int:
    """The process of a rank, once it is there."""
    while True:
        leader = client.health().pid
        if leader is not None:
            if rank == 0:
                return leader
            followers = followers_of(leader)
            if len(followers) >= rank:
                return followers[rank - 1]
        time.sleep(0.01)


def start_requests(client: ProcessClient, chance: random.Random) -> list[Watched]:
    """One to four long requests, the first of which has its first token."""
    watched = []
    for _ in range(chance.randint(1, 4)):
        sink = Watched()
        length = chance.choice((5, 60, 300))
        prompt = [chance.randint(3, 60) for _ in range(length)]
        client.start(make_requests(prompt, LONG), sink)
        watched.append(sink)
    watched[0].began.wait()
    return watched


def one_moment(
    client: ProcessClient,
    chance: random.Random,
    rank: int,
    number: signal.Signals,
    situation: str,
    expected: list[int],
) -> Moment:
    """Lose a rank once."""
    watched: list[Watched] = []
    if situation == "loading":  # another loss first, so that a job is loading
        os.kill(process_of(client, 0), signal.SIGKILL)
        while client.health().state == "ready":
            time.sleep(0.01)
    else:
        client.wait_ready(300)
        watched = start_requests(client, chance)
    time.sleep(chance.uniform(0, 1.0))
    process = process_of(client, rank)
    job = client.health().pid
    began = time.monotonic()
    os.kill(process, number)
    latest = began
    for sink in watched:
        if not sink.ended.wait(60):
            raise SystemExit("a request did not end within 60 s")
        if sink.reason is FinishReason.ERROR:
            latest = max(latest, sink.when)
    message = client.health().message
    if situation == "loading" and number == signal.SIGSTOP:
        # While a job loads, silence may last two minutes: end it here.
        time.sleep(1)
        os.kill(process, signal.SIGKILL)
    while client.health().pid == job:
        time.sleep(0.01)
    tokens = answer(client)
    if tokens != expected:
        raise SystemExit(f"the next answer is {tokens} instead of {expected}")
    return Moment(
        rank,
        number.name,
        situation,
        round(latest - began, 2),
        round(time.monotonic() - began, 2),
        message,
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--moments", type=int, default=30)
    parser.add_argument("--family", default="llama")
    parser.add_argument("--pipeline", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    moments = []
    with tempfile.TemporaryDirectory() as root:
        folder = save_for_ranks(arguments.family, Path(root) / arguments.family)
        with LLM(str(folder), kv_memory=KV_MEMORY) as alone:
            (right,) = alone.generate(PROMPT, SHORT)
        options = EngineOptions(
            ranks=arguments.ranks,
            pipeline=arguments.pipeline,
            kv_memory=KV_MEMORY,
            self_check=False,
        )
        rules = Supervision(
            wait_s=300.0,
            most_restarts=3 * arguments.moments,
            backoff_s=0.01,
            most_backoff_s=0.05,
        )
        client = ProcessClient(str(folder), options, supervision=rules)
        started = set()
        for index in range(arguments.moments):
            rank = index % arguments.ranks
            number = (signal.SIGKILL, signal.SIGSTOP)[index // arguments.ranks % 2]
            situation = "loading" if index % 5 == 4 else "busy"
            moment = one_moment(
                client, chance, rank, number, situation, list(right.token_ids)
            )
            print(json.dumps(asdict(moment)), flush=True)
            moments.append(moment)
            started.update(process_of(client, each) for each in range(arguments.ranks))
        client.close()
    latest = max(moment.error_s for moment in moments)
    slowest = max(moment.answer_s for moment in moments)
    left = [process for process in started if is_there(process)]
    result = {
        "moments": len(moments),
        "error_s_max": latest,
        "answer_again_s_max": slowest,
        "processes_left": left,
    }
    print(json.dumps(result, indent=1))
    if arguments.json:
        rows = [asdict(moment) for moment in moments]
        arguments.json.write_text(json.dumps({**result, "rows": rows}, indent=1))
    return 1 if latest > LATEST_ERROR_S or left else 0


def is_there(process: int) -> bool:
    """True if a process has not ended."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
