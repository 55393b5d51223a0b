"""`rvllm bench decode` and `prefill`: the engine in this process, over the Python API.

Each round is warmed up once and measured several times: medians, quartiles. Bytes a
second count what a decode step must read, the weights and the context's KV. A plain
copy is measured in the same run, to compare them with.
"""

from __future__ import annotations

import functools
import random
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rvllm_local.bench import record
from rvllm_local.bench.metrics import Figure, spread
from rvllm_local.bench.text_table import aligned, show
from rvllm_local.errors import ConfigError
from rvllm_local.types import SamplingParams

if TYPE_CHECKING:
    from rvllm_local.llm import LLM

Samples = dict[str, list[float]]
Stats = Mapping[str, int | float | str]
Sizes = tuple[int, int]  # bytes of the weights, bytes of one token's KV
_COPY_BYTES = 2**28
_TOGETHER = 0.75  # of the streams, on average over the steps of a round
_ATTEMPTS = 4  # at a round whose streams did not decode together
_LONGER = 4  # times the tokens, each time
_TOKENS_CHECKED = 8  # of a stream in one step, at most, where some are drafted
_DRAFT_COLUMNS = ("tokens_per_step", "drafts_kept", "drafts_lost")
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
    runs = {}
    copy = _copy_bandwidth()
    with _engine(arguments, max(arguments.rows)) as (llm, sizes):
        weights, bytes_per_token = sizes
        context = arguments.context + arguments.tokens / 2
        for rows in arguments.rows:
            measure = functools.partial(_decode, llm, rows, arguments)
            samples = _rounds(arguments.rounds, measure)
            moved = weights + rows * context * bytes_per_token
            name = f"{rows} x {arguments.context}"
            runs[name] = _decode_figures(samples, moved, copy)
            if arguments.draft is not None:
                runs[name] |= _draft_figures(samples)
    return _finish("decode", arguments, runs, copy)


def _draft_figures(samples: Samples) -> dict[str, Figure]:
    """Tokens a step of all streams, and drafted tokens that were kept or not."""
    return {
        "tokens_per_step": spread(samples["tokens_per_step"], "", "higher"),
        "drafts_kept": spread(samples["drafts_kept"], ""),
        "drafts_lost": spread(samples["drafts_lost"], ""),
    }


def _decode_figures(
    samples: Samples,
    moved: float,
    copy: float,
) -> dict[str, Figure]:
    """Figures of steps that read `moved` bytes each; a copy moves `copy` bytes/s."""
    gigabytes = []
    shares = []
    for seconds in samples["step"]:
        rate = moved / seconds
        gigabytes.append(rate / 1e9)
        shares.append(rate / copy)
    pairs = zip(samples["dispatches"], samples["steps"], strict=True)
    dispatches = [count / steps for count, steps in pairs]
    return {
        "step": spread(samples["step"], "s"),
        "tokens_per_s": spread(samples["tokens_per_s"], "tokens/s", "higher"),
        "bytes_per_s": spread(gigabytes, "GB/s", "higher"),
        "of_copy": spread(shares, "", "higher"),
        # Which step a reading of the counters falls into is chance: one more or less.
        "steps": spread(samples["steps"], ""),
        "dispatches_per_step": spread(dispatches, ""),
    }


def prefill(arguments: Namespace) -> int:
    """One prompt to its first token, by length."""
    record.check_writable(arguments.json)
    _check(arguments.rounds, *arguments.context)
    runs = {}
    copy = _copy_bandwidth()
    with _engine(arguments, 4) as (llm, _):
        for length in arguments.context:
            measure = functools.partial(_prefill, llm, length)
            samples = _rounds(arguments.rounds, measure)
            rates = [length / seconds for seconds in samples["ttft"]]
            runs[f"{length} tokens"] = {
                "ttft": spread(samples["ttft"], "s"),
                "tokens_per_s": spread(rates, "tokens/s", "higher"),
                # Chunks are fitted to the machine's speed, so that their number is
                # none of the code's own figures.
                "steps": spread(samples["steps"], ""),
                "dispatches": spread(samples["dispatches"], ""),
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
            **_draft_options(arguments, rows),
        }
    )
    options = config.options
    files = locate(config.model, show_progress, cache_dir=config.cache_dir)
    plan = plan_model(describe(files), options)
    with LLM.from_options(config.model, options) as llm:
        yield llm, (plan.weights, plan.bytes_per_token)


def _draft_options(arguments: Namespace, rows: int) -> dict[str, str | int]:
    """The drafter, if one was named, and room for what it drafts in a step."""
    draft = getattr(arguments, "draft", None)
    if draft is None:
        return {}
    return {"draft": draft, "max_rows": rows * _TOKENS_CHECKED}


def _copy_bandwidth() -> float:
    from rvllm_local import host

    host.prepare()
    from rvllm_local.metal_kernels.proof.timing import copy_bandwidth

    return copy_bandwidth(_COPY_BYTES)


def _rounds(count: int, measure: Callable[[int], dict[str, float]]) -> Samples:
    """Samples by name; round 0 is the warm-up."""
    samples: Samples = {}
    measure(0)
    for number in range(1, count + 1):
        for name, value in measure(number).items():
            samples.setdefault(name, []).append(value)
    return samples


def _prompt(length: int, number: int) -> list[int]:
    """Valid token ids. No prompt of another number or length begins alike.

    A cached beginning would be no work.
    """
    draw = random.Random(f"{length} {number}")
    return [draw.randrange(10, 250) for _ in range(length)]


class _NotTogetherError(Exception):
    """Some streams were over before all had begun; `rows` decoded together on average."""

    def __init__(self, rows: float) -> None:
        super().__init__(rows)
        self.rows = rows


def _decode(
    llm: LLM,
    rows: int,
    arguments: Namespace,
    number: int,
) -> dict[str, float]:
    """One round: seconds a step while `rows` streams decode together.

    On a busy machine the first streams may be over before the last begins. Then the
    round is taken anew with longer answers.
    """
    prompts = [_prompt(arguments.context, number * rows + row) for row in range(rows)]
    # Into the cache first: otherwise the first streams would be over before the last
    # prompt was read.
    for prompt in prompts:
        llm.generate(prompt, _greedy(1))
    together = 0.0
    for attempt in range(_ATTEMPTS):
        try:
            return _decode_streams(llm, prompts, arguments.tokens * _LONGER**attempt)
        except _NotTogetherError as error:
            together = error.rows
        except ConfigError:  # longer answers no longer fit
            if attempt == 0:
                raise
            break
    raise ConfigError(
        f"of {rows} streams only {together:.1f} decoded together, as the first were over "
        f"before the last began: give more --tokens than {arguments.tokens}, or more "
        "--kv-memory"
    )


def _decode_streams(
    llm: LLM,
    prompts: list[list[int]],
    tokens: int,
) -> dict[str, float]:
    """The figures of streams of `tokens` tokens.

    Raises `_NotTogetherError`, and `ConfigError` if the context is full too early.
    """
    rows = len(prompts)
    params = _greedy(tokens + 1)
    streams = [llm.stream(prompt, params) for prompt in prompts]
    received = 0
    for stream in streams:
        received += len(next(stream).token_ids)
    before = llm.stats()
    began = time.perf_counter()
    for stream in streams:
        for event in stream:
            received += len(event.token_ids)
    seconds = time.perf_counter() - began
    after = llm.stats()
    if received < rows * (tokens + 1):
        raise ConfigError(
            f"the answers ended after {received / rows:.0f} tokens, where the context "
            f"is full: give fewer --tokens than {tokens}"
        )
    # By the engine's counters: some tokens of the streams that came first had been
    # waiting here already.
    generated = _added(before, after, "generated_tokens")
    steps = _added(before, after, "steps")
    if generated < _TOGETHER * rows * steps or not steps:
        raise _NotTogetherError(generated / max(1.0, steps))
    return {
        "step": seconds / steps,
        "tokens_per_s": generated / seconds,
        "steps": steps,
        "dispatches": _added(before, after, "kernel_dispatches"),
        "tokens_per_step": generated / steps,
        "drafts_kept": _added(before, after, "draft_tokens_accepted"),
        "drafts_lost": _added(before, after, "draft_tokens_rejected"),
    }


def _greedy(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)


def _added(
    before: Stats,
    after: Stats,
    name: str,
) -> float:
    """How much a counter of the engine went up."""
    return float(after[name]) - float(before[name])


def _prefill(
    llm: LLM,
    length: int,
    number: int,
) -> dict[str, float]:
    """One round: seconds to the first token of a prompt that nobody has seen."""
    prompt = _prompt(length, number * 1000 + length)
    before = llm.stats()
    began = time.perf_counter()
    llm.generate(prompt, _greedy(1))
    seconds = time.perf_counter() - began
    after = llm.stats()
    return {
        "ttft": seconds,
        "steps": _added(before, after, "steps"),
        "dispatches": _added(before, after, "kernel_dispatches"),
    }


def _finish(
    kind: str,
    arguments: Namespace,
    runs: dict[str, dict[str, Figure]],
    copy: float,
) -> int:
    columns = _COLUMNS[kind]
    if getattr(arguments, "draft", None) is not None:
        columns += _DRAFT_COLUMNS
    heads = [column.replace("_", " ") for column in columns]
    lines = []
    for name, run in runs.items():
        cells = [show(run[column], bounds=True) for column in columns]
        lines.append([name, *cells])
    sys.stdout.write(
        f"{record.machine()}; a plain copy moves {copy / 1e9:.1f} GB/s; "
        "medians (quartiles)\n"
    )
    sys.stdout.write(aligned(("", *heads), lines) + "\n")
    if arguments.json:
        new = record.new_record(
            kind,
            runs,
            model=arguments.model,
            copy_bytes_per_s=copy,
        )
        new.save(Path(arguments.json))
    return 0
