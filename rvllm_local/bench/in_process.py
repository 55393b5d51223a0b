"""`rvllm bench decode` and `prefill`: the engine in this process, over the Python API that everyone has.

Each round is warmed up once and measured several times; medians, quartiles. Bytes a second count what a decode step must
read, the weights and the context's KV, beside a plain copy that is measured in the same run.
"""

from __future__ import annotations

import random
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rvllm_local.bench import record
from rvllm_local.bench.metrics import Figure, spread
from rvllm_local.bench.text_table import aligned, show
from rvllm_local.errors import ConfigError

if TYPE_CHECKING:
    from rvllm_local.llm import LLM

Samples = dict[str, list[float]]
Sizes = tuple[int, int]  # bytes of the weights, bytes of one token's KV
_COPY_BYTES = 2**28
_TOGETHER = 0.75  # of the streams, on average over the steps of a round
_COLUMNS = {
    "decode": (
        "step",
        "tokens_per_s",
        "bytes_per_s",
        "of_copy",
        "steps",
        "dispatches_per_step",
    ),
    "prefill": ("ttft", "tokens_per_s", "steps", "dispatches"),
}


def decode(arguments: Namespace) -> int:
    """Streams that decode together: ms a step, tokens/s, bytes/s."""
    record.check_writable(arguments.json)
    _check(arguments.rounds, *arguments.rows, arguments.context, arguments.tokens)
    runs, copy = {}, _copy_bandwidth()
    with _engine(arguments, max(arguments.rows)) as (llm, sizes):
        for rows in arguments.rows:
            found = _rounds(
                arguments.rounds,
                lambda number, rows=rows: _decode(llm, rows, number, arguments),  # type: ignore[misc]
            )
            context = arguments.context + arguments.tokens / 2
            moved = sizes[0] + rows * context * sizes[1]
            counted = (found["dispatches"], found["steps"])
            rates = [moved / seconds for seconds in found["step"]]
            runs[f"{rows} x {arguments.context}"] = {
                "step": spread(found["step"], "s"),
                "tokens_per_s": spread(found["tokens_per_s"], "tokens/s", "higher"),
                "bytes_per_s": spread([rate / 1e9 for rate in rates], "GB/s", "higher"),
                "of_copy": spread([rate / copy for rate in rates], "", "higher"),
                # Which step a reading of the counters falls into is chance: one more or less.
                "steps": spread(found["steps"], ""),
                "dispatches_per_step": spread(
                    [a / b for a, b in zip(*counted, strict=True)], ""
                ),
            }
    return _finish("decode", arguments, runs, copy)


def prefill(arguments: Namespace) -> int:
    """One prompt to its first token, by length."""
    record.check_writable(arguments.json)
    _check(arguments.rounds, *arguments.context)
    runs, copy = {}, _copy_bandwidth()
    with _engine(arguments, 4) as (llm, _):
        for length in arguments.context:
            found = _rounds(
                arguments.rounds,
                lambda number, length=length: _prefill(llm, length, number),  # type: ignore[misc]
            )
            runs[f"{length} tokens"] = {
                "ttft": spread(found["ttft"], "s"),
                "tokens_per_s": spread(
                    [length / seconds for seconds in found["ttft"]],
                    "tokens/s",
                    "higher",
                ),
                # Chunks are fitted to the machine's speed, so their number is none of the code's own figures.
                "steps": spread(found["steps"], ""),
                "dispatches": spread(found["dispatches"], ""),
            }
    return _finish("prefill", arguments, runs, copy)


def _check(*counts: int) -> None:
    if min(counts) < 1:
        raise ConfigError(
            f"rounds, rows, lengths and tokens must be at least 1, not {min(counts)}"
        )


@contextmanager
def _engine(arguments: Namespace, rows: int) -> Iterator[tuple[LLM, Sizes]]:
    from rvllm_local.config import load_config, show_progress
    from rvllm_local.engine.startup.planning import plan_model
    from rvllm_local.llm import LLM
    from rvllm_local.models.describe import describe
    from rvllm_local.models.locate import locate

    # No disk cache: it would know the prompts from the last time.
    config = load_config(
        {
            "model": arguments.model,
            "kv_memory": arguments.kv_memory,
            "max_rows": rows,
            "cache": "memory",
        }
    )
    options = config.options
    files = locate(config.model, show_progress, cache_dir=config.cache_dir)
    plan = plan_model(describe(files), options)
    with LLM.from_options(config.model, options) as llm:
        yield llm, (plan.weights, plan.bytes_per_token)


def _copy_bandwidth() -> float:
    from rvllm_local import host

    host.prepare()
    from rvllm_local.metal_kernels.proof.timing import copy_bandwidth

    return copy_bandwidth(_COPY_BYTES)


def _rounds(count: int, measure: Callable[[int], dict[str, float]]) -> Samples:
    """Samples by name; round 0 is the warm-up."""
    found: Samples = {}
    for number in range(count + 1):
        row = measure(number)
        for name, value in row.items() if number else ():
            found.setdefault(name, []).append(value)
    return found


def _prompt(length: int, number: int) -> list[int]:
    """Valid token ids, such that no prompt of another number or length begins alike: a cached one would be no work."""
    draw = random.Random(f"{length} {number}")
    return [draw.randrange(10, 250) for _ in range(length)]


def _decode(llm: LLM, rows: int, number: int, arguments: Namespace) -> dict[str, float]:
    from rvllm_local.types import SamplingParams

    params = SamplingParams(
        max_tokens=arguments.tokens + 1, temperature=0, ignore_eos=True
    )
    prompts = [_prompt(arguments.context, number * rows + row) for row in range(rows)]
    # Into the cache first: otherwise the first streams would be over before the last prompt was read.
    for prompt in prompts:
        llm.generate(
            prompt, SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)
        )
    streams = [llm.stream(prompt, params) for prompt in prompts]
    received = sum(len(next(stream).token_ids) for stream in streams)
    before, began = llm.stats(), time.perf_counter()
    received += sum(len(event.token_ids) for stream in streams for event in stream)
    seconds, after = time.perf_counter() - began, llm.stats()
    # By the engine's counters: some tokens of the streams that came first had been waiting here already.
    tokens = float(after["generated_tokens"]) - float(before["generated_tokens"])
    steps = float(after["steps"]) - float(before["steps"])
    if received < rows * (arguments.tokens + 1):
        raise ConfigError(
            f"the answers ended after {received / rows:.0f} tokens, where the context is full: "
            f"give fewer --tokens than {arguments.tokens}"
        )
    if tokens < _TOGETHER * rows * steps or not steps:
        raise ConfigError(
            f"of {rows} streams only {tokens / max(1.0, steps):.1f} decoded together, as the first were over before the last "
            f"began: give more --tokens than {arguments.tokens}, or more --kv-memory"
        )
    dispatches = float(after["kernel_dispatches"]) - float(before["kernel_dispatches"])
    return {
        "step": seconds / steps,
        "tokens_per_s": tokens / seconds,
        "steps": steps,
        "dispatches": dispatches,
    }


def _prefill(llm: LLM, length: int, number: int) -> dict[str, float]:
    from rvllm_local.types import SamplingParams

    before, began = llm.stats(), time.perf_counter()
    llm.generate(
        _prompt(length, number * 1000 + length),
        SamplingParams(max_tokens=1, temperature=0, ignore_eos=True),
    )
    seconds, after = time.perf_counter() - began, llm.stats()
    names = {"steps": "steps", "dispatches": "kernel_dispatches"}
    return {"ttft": seconds} | {
        name: float(after[key]) - float(before[key]) for name, key in names.items()
    }


def _finish(
    kind: str, arguments: Namespace, runs: dict[str, dict[str, Figure]], copy: float
) -> int:
    columns = _COLUMNS[kind]
    lines = [
        [name, *(show(run[column], bounds=True) for column in columns)]
        for name, run in runs.items()
    ]
    heads = [column.replace("_", " ") for column in columns]
    sys.stdout.write(
        f"{record.machine()}; a plain copy moves {copy / 1e9:.1f} GB/s; medians (quartiles)\n"
    )
    sys.stdout.write(aligned(("", *heads), lines) + "\n")
    if arguments.json:
        made = record.new_record(
            kind, runs, model=arguments.model, copy_bytes_per_s=copy
        )
        made.save(Path(arguments.json))
    return 0
