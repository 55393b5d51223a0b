"""`rvllm bench startup`: from the start of a process to its first token, and the most memory it took."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from rvllm_local.bench import record
from rvllm_local.bench.metrics import spread
from rvllm_local.bench.text_table import aligned, show
from rvllm_local.errors import ConfigError, EngineError

_CODE = """
import sys
from rvllm_local import LLM, SamplingParams
with LLM(sys.argv[1], kv_memory=sys.argv[2]) as llm:
    print(llm.generate("The sky is blue because", SamplingParams(max_tokens=1, temperature=0))[0].token_ids, flush=True)
"""


@dataclass(frozen=True, slots=True)
class Started:
    """One process: seconds to its first line and to its end, the most resident bytes, and that line."""

    first_s: float
    whole_s: float
    peak: int
    line: str


def measure(code: str, *arguments: str) -> Started:
    """Run Python code in a process of its own. Raises `EngineError` if it fails."""
    began = time.perf_counter()
    command = [sys.executable, "-c", code, *arguments]
    # Errors go to a file: a pipe that nobody reads meanwhile would stop a process that
    # says much.
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as child,
    ):
        assert child.stdout is not None
        line = child.stdout.readline()
        first = time.perf_counter() - began
        child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        said = errors.read().strip().splitlines()
    if child.returncode != 0 or not line:
        raise EngineError(
            f"the process ended with {child.returncode}: {said[-1] if said else 'no output'}"
        )
    scale = 1024 if sys.platform == "linux" else 1
    return Started(
        first, time.perf_counter() - began, usage.ru_maxrss * scale, line.strip()
    )


def startup(arguments: Namespace) -> int:
    """Rounds of processes, after one that fills the page cache."""
    if arguments.rounds < 1:
        raise ConfigError(f"--rounds must be at least 1, not {arguments.rounds}")
    record.check_writable(arguments.json)
    starts = [
        measure(_CODE, arguments.model, arguments.kv_memory)
        for _ in range(arguments.rounds + 1)
    ][1:]
    run = {
        "first_token": spread([start.first_s for start in starts], "s"),
        "whole": spread([start.whole_s for start in starts], "s"),
        "peak_memory": spread([float(start.peak) for start in starts], "bytes"),
    }
    sys.stdout.write(f"{record.machine()}; medians (quartiles) of {arguments.rounds}\n")
    cells = [arguments.model, *(show(figure, bounds=True) for figure in run.values())]
    sys.stdout.write(
        aligned(("", "first token", "process", "peak memory"), [cells]) + "\n"
    )
    if arguments.json:
        record.new_record("startup", {arguments.model: run}).save(Path(arguments.json))
    return 0
