"""The same traces at rvllm's server, mlx-lm's and llama.cpp's: capacity, loads, an agent's turns, memory over time.

    python -m benchmarks.beside_peers                      # everything; about two hours on two cores
    python -m benchmarks.beside_peers capacity load        # only these
    python -m benchmarks.beside_peers load-80-mlx-lm-1     # one step

Each step is one server in a process of its own, started anew and warmed up, and writes one file of raw results; a step
whose file is there is not run again. At the end what is there is pooled into benchmarks/results/*.json.

Capacity is the throughput of a server that gets all requests of the trace at once. The loads are 50, 80 and 120 % of
rvllm's capacity, and the requests the same for all servers: a bursty trace, prompts of 40 to 700 tokens and a few of
1,500 to 2,500, 48 tokens out.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers import results
from benchmarks.peers.llama_server import LlamaServer
from benchmarks.peers.mlx_lm_server import MlxLmServer, plain_folder
from benchmarks.peers.process import ServerProcess
from benchmarks.peers.rvllm_server import RvllmServer
from rvllm_local import host
from rvllm_local.bench import load, serve, trace
from rvllm_local.bench.load import Endpoint
from rvllm_local.bench.processes import Bystanders
from rvllm_local.config import default_cache_dir
from rvllm_local.models.locate import locate

SERVERS = ("rvllm", "mlx-lm", "llama.cpp")
LOADS = (50, 80, 120)  # % of rvllm's capacity
EXTRA = {
    "temperature": 0,
    "ignore_eos": True,
}  # mlx-lm knows no ignore_eos: its folder names an end that never comes
AGENT_TURNS, AGENT_PREFIX = 20, 4000
TIMEOUT_S = 240.0  # an answer that is not whole by then counts as failed


@dataclass(frozen=True, slots=True)
class Bench:
    """What all steps need. `raw` is the folder of raw results."""

    model: str
    raw: Path
    requests: int
    rounds: int
    minutes: float
    memory_rate: float

    def path(self, step: str) -> Path:
        return self.raw / f"{step}.json"

    def gguf(self) -> Path:
        return locate(self.model).path

    def start(self, server: str, *options: str, **more: Any) -> ServerProcess:
        """Start a server by its name."""
        if server == "rvllm":
            return RvllmServer(self.model, *options, **more)
        if server == "mlx-lm":
            folder = self.raw / "plain"
            if not (folder / "tokenizer_config.json").exists():
                plain_folder(self.model, folder, endless=True)
            return MlxLmServer(folder, *options)
        return LlamaServer(
            self.gguf(),
            "--parallel",
            "8",
            "--ctx-size",
            "32768",
            "--kv-unified",
            *options,
        )

    def ask(
        self,
        server: ServerProcess,
        made: trace.Trace,
        every_s: float = 0.2,
        timeout_s: float = 600.0,
    ) -> dict[str, Any]:
        """Send a trace, and check what came with the model's own tokenizer."""
        endpoint = Endpoint(server.url, server.model, extra=EXTRA, timeout_s=timeout_s)
        count = serve.tokenizer(self.model)
        others = Bystanders(server.pid)
        found = load.run(endpoint, made, serve.sampler(server.pid), every_s)
        share = others.share()
        serve.recheck(found.outcomes, count)
        return results.raw(found, others_cpu=share)

    def warm(self, server: ServerProcess) -> None:
        """Requests whose results nobody looks at."""
        self.ask(
            server, trace.bursty(4, 10_000, trace.Mix(large_share=0.0)).at_rate(1.0)
        )

    def trace(self, seed: int) -> trace.Trace:
        return trace.bursty(self.requests, seed, trace.Mix())

    def capacity(self) -> float:
        """rvllm's requests/s when all come at once: the median of its rounds."""
        found = [
            results.load_raw(path)
            for path in sorted(self.raw.glob("capacity-rvllm-*.json"))
        ]
        if not found:
            raise SystemExit(
                "the loads are shares of rvllm's capacity: run the step capacity first"
            )
        answered = [
            sum(one.failure is None for one in results.outcomes(row)) for row in found
        ]
        if not all(answered):
            raise SystemExit(
                "rvllm answered no request of a round of the step capacity: look there first"
            )
        return statistics.median(
            count / row["wall_s"] for count, row in zip(answered, found, strict=True)
        )


Step = Callable[[], dict[str, Any]]


def steps(bench: Bench) -> Iterator[tuple[str, Step]]:
    """Every step by name, servers in turn so that no one has the better hour."""
    for number in range(1, bench.rounds + 1):
        for server in SERVERS:
            yield (
                f"capacity-{server}-{number}",
                lambda s=server, n=number: capacity(bench, s, n),
            )  # type: ignore[misc]
    for number in range(1, bench.rounds + 1):
        for percent in LOADS:
            for server in SERVERS:
                yield (
                    f"load-{percent}-{server}-{number}",
                    lambda p=percent, s=server, n=number: one_load(bench, p, s, n),  # type: ignore[misc]
                )
    for server in SERVERS:
        yield f"agent-{server}", lambda s=server: agent(bench, s)  # type: ignore[misc]
    for server in SERVERS:
        yield f"memory-{server}", lambda s=server: memory(bench, s)  # type: ignore[misc]


def capacity(bench: Bench, server: str, number: int) -> dict[str, Any]:
    with bench.start(server) as running:
        bench.warm(running)
        return bench.ask(running, bench.trace(number).at_rate(float("inf")))


def one_load(bench: Bench, percent: int, server: str, number: int) -> dict[str, Any]:
    rate = bench.capacity() * percent / 100
    with bench.start(server) as running:
        bench.warm(running)
        # Another seed than the capacity's, so that no server has seen the prompts.
        return bench.ask(running, bench.trace(100 + number).at_rate(rate)) | {
            "rate": rate
        }


def agent(bench: Bench, server: str) -> dict[str, Any]:
    """The same conversation three times: new, once more, and after the server was restarted."""
    made = trace.agent(1, 7, trace.Mix(), turns=AGENT_TURNS, prefix=AGENT_PREFIX)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as cache:
        more: dict[str, Any] = {}
        options: tuple[str, ...] = ()
        if server == "rvllm":
            more["environ"] = {"RVLLM_CACHE_DIR": cache}
            options = ("--cache", "disk")
            bench = Bench(
                str(bench.gguf()),
                bench.raw,
                bench.requests,
                bench.rounds,
                bench.minutes,
                bench.memory_rate,
            )
        with bench.start(server, *options, **more) as running:
            bench.warm(running)
            found["cold"] = bench.ask(running, made)
            found["warm"] = bench.ask(running, made)
        with bench.start(server, *options, **more) as running:
            bench.warm(running)
            found["restarted"] = bench.ask(running, made)
    return found


def memory(bench: Bench, server: str) -> dict[str, Any]:
    """A light load for long, and the memory of the server every second."""
    count = max(2, round(bench.minutes * 60 * bench.memory_rate))
    made = trace.bursty(count, 77, trace.Mix()).at_rate(bench.memory_rate)
    # Others may want the cores meanwhile, and time is not read: llama.cpp's threads need not wait busily.
    options = ("--poll", "0") if server == "llama.cpp" else ()
    with bench.start(server, *options) as running:
        return bench.ask(running, made, every_s=1.0, timeout_s=1200.0) | {
            "rate": bench.memory_rate
        }


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Keep the folder to one model and size: a step that is there is taken as it is, whatever it was measured with."""
    path = folder / "settings.json"
    if not path.exists():
        path.write_text(json.dumps(settings), encoding="utf-8")
    kept = json.loads(path.read_text(encoding="utf-8"))
    for name, value in settings.items():
        if kept.get(name) != value:
            raise SystemExit(
                f"the results in {folder} are of --{name} {kept.get(name)}, not {value}: give that, or another --raw folder"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "steps", nargs="*", default=["*"], help="names, beginnings or patterns of steps"
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument(
        "--raw",
        type=Path,
        default=default_cache_dir() / "bench",
        help="folder of raw results",
    )
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).parent / "results"
    )
    parser.add_argument("--requests", type=int, default=60, help="of a run")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--minutes", type=float, default=30.0, help="of the memory step"
    )
    parser.add_argument(
        "--memory-rate", type=float, default=0.08, help="requests/s of the memory step"
    )
    parser.add_argument("--list", action="store_true", help="only name the steps")
    args = parser.parse_args()
    host.prepare()
    args.raw.mkdir(parents=True, exist_ok=True)
    if not args.list:
        claim(args.raw, {"model": args.model, "requests": args.requests})
    bench = Bench(
        args.model, args.raw, args.requests, args.rounds, args.minutes, args.memory_rate
    )
    for name, step in steps(bench):
        if not any(
            fnmatch.fnmatch(name, pattern) or name.startswith(f"{pattern}-")
            for pattern in args.steps
        ):
            continue
        state = "is there" if bench.path(name).exists() else "to do"
        if args.list or state == "is there":
            print(f"{name}: {state}")
            continue
        found = step()
        part = bench.path(name).with_suffix(".part")
        part.write_text(json.dumps(found), encoding="utf-8")
        part.replace(
            bench.path(name)
        )  # an interrupt leaves no half of a step, which would count as done
        print(f"{name}: {results.line(found)}", flush=True)
    if not args.list:
        results.pool(args.raw, args.results)


if __name__ == "__main__":
    main()
