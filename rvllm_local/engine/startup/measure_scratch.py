"""Measures the temporary memory of a step: the largest prefill chunk and the largest decode batch, once, at the start.

What is computed here belongs to nobody: its blocks are given back, and whoever takes them writes before reading.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx

from rvllm_local.attention.cpu.session import MAX_PADDING
from rvllm_local.attention.geometry import DecodeRow
from rvllm_local.engine.runner import ModelRunner
from rvllm_local.engine.sampling.sampler import RowSampling
from rvllm_local.memory.blocks import BLOCK_TOKENS
from rvllm_local.memory.tables import KVTables, SequenceTables
from rvllm_local.types import MAX_LOGPROBS, SamplingParams

_HARDEST = SamplingParams(temperature=1.0, top_p=0.9, top_k=50, min_p=0.01, logprobs=5)


def measure_scratch(
    runner: ModelRunner,
    kv: KVTables,
    *,
    context: int,
    rows: int,
    chunk: int,
) -> int:
    """The most bytes that MLX held at once beside what it holds now, over the largest calls that can come.

    A chunk at the end of the longest context; `rows` rows that share the longest context,
    and the longest that are attended together; the drawing of `rows` tokens; the scoring
    of a prompt's tile. Where layers run one by one, the first ones stand for all.
    """
    longest = min(context, kv.capacity_tokens(chunk))
    most_blocks = (
        MAX_PADDING * max(pool.num_total for pool in kv.pools) // rows
    )  # longer rows are attended one by one
    together = max(1, most_blocks * BLOCK_TOKENS)
    gc.collect()  # what is freed during a call would hide what it takes
    peaks = [
        _over(
            kv,
            longest,
            chunk,
            lambda tables, at: runner.try_prefill(tables, at, [0] * (longest - at)),
        )
    ]
    for length in {longest, min(longest, together)}:
        peaks.append(
            _over(kv, length, chunk, functools.partial(_decode, runner, rows, length))
        )
    peaks.append(_over(kv, 1, chunk, lambda tables, _: _draw(runner, tables, rows)))
    peaks.append(_over(kv, 1, chunk, lambda *_: runner.try_score(MAX_LOGPROBS)))
    for pool in kv.pools:
        pool.peak_used = 0
    return max(peaks)


def resident_growth(call: Callable[[], object]) -> int:
    """Bytes by which resident memory rose at most during `call`, whoever allocated them.

    0 where the system does not tell. For what MLX does not count.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        before = _status_bytes("VmRSS")
        call()
        return max(0, _status_bytes("VmHWM") - before)
    except OSError:
        call()
        return 0


def _status_bytes(name: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    kilobytes = text.partition(f"{name}:")[2].split()[0]
    return int(kilobytes) * 1024


def _over(
    kv: KVTables,
    length: int,
    chunk: int,
    call: Callable[[SequenceTables, int], None],
) -> int:
    """The peak of a call over a sequence of `length` tokens; it is told where the last chunk of these starts."""
    tables, start = kv.new_sequence(), max(0, length - chunk)
    try:
        for end in range(
            chunk, start + chunk, chunk
        ):  # as prefill goes: what slid out of a window is given back
            kv.grow(tables, min(end, start))
            kv.trim_windows(tables, min(end, start))
        kv.grow(tables, length)
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        call(tables, start)
        return max(0, mx.get_peak_memory() - before)
    finally:
        kv.release(tables)


def _decode(
    runner: ModelRunner,
    rows: int,
    length: int,
    tables: SequenceTables,
    _start: int,
) -> None:
    runner.try_decode(
        [DecodeRow(tables, length - 1, 0, adapter=runner.num_adapters)] * rows
    )


def _draw(
    runner: ModelRunner,
    tables: SequenceTables,
    rows: int,
) -> None:
    """One whole decode step of `rows` rows of one token."""
    samplings = [RowSampling(_HARDEST, row, 0) for row in range(rows)]
    sampled = runner.sample(
        [DecodeRow(tables, 0, 0, adapter=runner.num_adapters)] * rows, samplings, None
    )
    sampled.tokens.tolist()
