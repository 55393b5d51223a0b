"""Counts that depend on the code alone: function calls of an engine step and of an event, steps of a workload, modules.

    python -m benchmarks.counts --json now.json
    rvllm bench compare benchmarks/results/counts.json now.json --stable

A shared machine's times say little about a change; how many Python and C functions a decode step calls says much, and is
the same every time. The engine runs a tiny random llama on MLX operations, without a thread and without the paces that
depend on time. One time is given beside, as a multiple of a loop of plain Python: it is not compared strictly.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rvllm_local import host

host.prepare()

from rvllm_local.bench import record
from rvllm_local.bench.metrics import Figure, exact, spread
from rvllm_local.bench.outcome import Outcome
from rvllm_local.bench.sse import EventReader
from rvllm_local.engine.core import EngineCore
from rvllm_local.engine.startup.build import open_core
from rvllm_local.models.locate import locate
from rvllm_local.options import EngineOptions
from rvllm_local.text.tokenizer_files import read_tokenizer
from rvllm_local.types import Request, SamplingParams, StreamEvent
from tests.support.tiny import save_tiny

STEPS, PROMPT, TOKENS = 24, 40, 64
GREEDY = SamplingParams(max_tokens=TOKENS, temperature=0, ignore_eos=True)
SAMPLED = SamplingParams(
    max_tokens=TOKENS, temperature=0.8, top_p=0.9, top_k=40, seed=1, ignore_eos=True
)
ROWS = {"1 row": (1, GREEDY), "16 rows": (16, GREEDY), "16 rows sampled": (16, SAMPLED)}


def calls(work: Callable[[], None]) -> int:
    """Python and C functions that `work` calls."""
    count = 0

    def note(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    gc.collect()
    gc.disable()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


def open_tiny() -> EngineCore:
    with tempfile.TemporaryDirectory() as folder:
        files = locate(str(save_tiny("llama", Path(folder) / "llama")))
        options = EngineOptions(
            kv_memory=8_000_000,
            max_rows=16,
            prefill_chunk=32,
            cache="off",
            self_check=False,
            step_target_ms=10**9,
        )  # a target so far away that no budget of prefill depends on time
        return open_core(files, read_tokenizer(files), options)


def fill(core: EngineCore, rows: int, params: SamplingParams) -> None:
    """Add requests and step until all of them decode."""
    firsts: list[int] = []

    def sink(event: StreamEvent) -> None:
        if len(event.token_ids) and event.index == 0:
            firsts.append(1)

    for row in range(rows):
        core.add(
            Request(
                f"r{row}",
                tuple(3 + (row + index) % 100 for index in range(PROMPT)),
                params,
                0,
            ),
            sink,
        )
    while core.stats()["requests_waiting"] or len(firsts) < 2 * rows:
        core.step()


def drain(core: EngineCore) -> int:
    """Steps to the end of all requests."""
    number = 0
    while core.has_work:
        core.step()
        number += 1
    return number


def step_figures(
    core: EngineCore, rows: int, params: SamplingParams
) -> dict[str, Figure]:
    """Calls of a decode step, and its time as a multiple of the calibration loop."""
    fill(core, rows, params)

    def several() -> None:
        for _ in range(STEPS):
            core.step()

    number = calls(several)
    drain(core)
    fill(core, rows, params)
    times = []
    for _ in range(STEPS):
        began = time.process_time()
        core.step()
        times.append((time.process_time() - began) / calibration())
    drain(core)
    return {
        "calls_per_step": exact(number / STEPS, "", stable=True),
        "of_calibration": spread(times, ""),
    }


def calibration() -> float:
    """Seconds of a fixed loop of plain Python."""
    began = time.process_time()
    total = 0
    for index in range(10_000):
        total += index & 7
    return max(time.process_time() - began, 1e-6)


def workload(core: EngineCore) -> dict[str, Figure]:
    """Steps of 24 requests of mixed lengths, more than run at once."""
    ended: list[StreamEvent] = []
    for row in range(24):
        prompt = tuple(3 + (row * 7 + index) % 100 for index in range(8 + 5 * row))
        params = SamplingParams(max_tokens=8 + row, temperature=0, ignore_eos=True)
        core.add(Request(f"w{row}", prompt, params, 0), ended.append)
    steps = drain(core)
    tokens = sum(len(event.token_ids) for event in ended)
    return {
        "tokens": exact(tokens, "", "higher", stable=True),
        "tokens_per_step": exact(tokens / steps, "", "higher", stable=True),
    }


def reader() -> dict[str, Figure]:
    """Calls that the load generator's reader makes for each event."""
    event = (
        b"data: "
        + json.dumps(
            {
                "choices": [
                    {"index": 0, "delta": {"content": "la"}, "finish_reason": None}
                ]
            }
        ).encode()
    )
    read = EventReader(Outcome("small", 0, 0.0, 100))

    def several() -> None:
        for number in range(100):
            read.feed(event + b"\n\n", float(number))

    return {"calls_per_event": exact(calls(several) / 100, "", stable=True)}


def modules(code: str) -> Figure:
    """Modules that a fresh process has loaded after `code`."""
    script = f"import contextlib, sys\nwith contextlib.suppress(SystemExit):\n    {code}\nprint(len(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return exact(int(done.stdout.split()[-1]), "", stable=True)


def measure() -> dict[str, dict[str, Figure]]:
    core = open_tiny()
    fill(core, 16, SAMPLED)  # warm: whatever is made at the first use
    drain(core)
    runs = {
        f"decode, {name}": step_figures(core, rows, params)
        for name, (rows, params) in ROWS.items()
    }
    runs["24 mixed requests"] = workload(core)
    runs["reading events"] = reader()
    runs["modules loaded"] = {
        "rvllm --help": modules("from rvllm_local.cli import main; main(['--help'])"),
        "rvllm bench --help": modules(
            "from rvllm_local.cli import main; main(['bench', '--help'])"
        ),
        "import rvllm_local": modules("import rvllm_local"),
    }
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    made = record.new_record("counts", measure())
    made.save(args.json)
    for name, run in made.runs.items():
        print(
            f"{name}: "
            + ", ".join(f"{key} {figure.value:.2f}" for key, figure in run.items())
        )


if __name__ == "__main__":
    main()
