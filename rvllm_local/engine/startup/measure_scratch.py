"""Measures the temporary memory of a step, once, at the start.

It runs the largest prefill chunk and the largest decode batch. Their results belong to
nobody: the blocks are given back, and whoever takes them writes before reading.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx

from rvllm_local.attention.cpu.session import MAX_PADDING
from rvllm_local.attention.geometry import (
    DecodeRow,
    TokenChunk,
    chunk_geometry,
    rows_geometry,
)
from rvllm_local.engine.decode_batch import row_groups
from rvllm_local.engine.runner import ModelRunner
from rvllm_local.engine.sampling.logprobs import target_logprobs
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
    """The most bytes that MLX held at once beside those that it holds now.

    It computes the largest calls that can come. A chunk at the end of the longest
    context; `rows` rows that share the longest context, and the longest that are
    attended together; the drawing of `rows` tokens; the scoring of a prompt's tile.
    Where layers run one by one, the first ones stand for all.
    """
    longest = min(context, kv.capacity_tokens(chunk))
    # Longer rows are attended one by one; padding rows count as others do.
    num_blocks = max(pool.num_total for pool in kv.pools)
    num_rows = max(rows, runner.row_group or 0)
    most_blocks = MAX_PADDING * num_blocks // num_rows
    together = max(1, most_blocks * BLOCK_TOKENS)
    gc.collect()  # what is freed during a call would hide what it takes

    def prefill(tables: SequenceTables, start: int) -> None:
        token_ids = [0] * (longest - start)
        _prefill(runner, TokenChunk(tables, start, token_ids, runner.num_adapters))

    def draw(tables: SequenceTables, _start: int) -> None:
        _draw(runner, tables, rows)

    def score(_tables: SequenceTables, _start: int) -> None:
        logits = mx.zeros((runner.score_tile, runner.vocab_size))
        target_logprobs(logits, [0] * runner.score_tile, MAX_LOGPROBS)

    peaks = [_peak_of(kv, longest, chunk, prefill)]
    for length in {longest, min(longest, together)}:
        decode = functools.partial(_decode, runner, rows, length)
        peaks.append(_peak_of(kv, length, chunk, decode))
    peaks.append(_peak_of(kv, 1, chunk, draw))
    peaks.append(_peak_of(kv, 1, chunk, score))
    for pool in kv.pools:
        pool.peak_used = 0
    return max(peaks)


def resident_growth(call: Callable[[], object]) -> int:
    """Bytes by which resident memory rose at most during `call`.

    They include what MLX does not count. 0 where the system does not tell.
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


def _peak_of(
    kv: KVTables,
    length: int,
    chunk: int,
    call: Callable[[SequenceTables, int], None],
) -> int:
    """The peak of a call over a sequence of `length` tokens.

    The call gets the position at which the last chunk of these starts.
    """
    tables = kv.new_sequence()
    start = max(0, length - chunk)
    try:
        # As prefill goes: what slid out of a window is given back.
        for end in range(chunk, start + chunk, chunk):
            position = min(end, start)
            kv.grow(tables, position)
            kv.trim_windows(tables, position)
        kv.grow(tables, length)
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        call(tables, start)
        return max(0, mx.get_peak_memory() - before)
    finally:
        kv.release(tables)


def _prefill(runner: ModelRunner, chunk: TokenChunk) -> None:
    """The prefill of a chunk. Where layers run one by one, a few of them."""
    if not runner.runs_by_layer:
        runner.prefill(chunk)
        return
    tile = chunk
    if runner.row_group is not None:
        first = max(0, len(chunk.token_ids) - BLOCK_TOKENS)
        tile = chunk.tile(first, BLOCK_TOKENS)
    geometry = chunk_geometry(runner.layout, tile)
    tokens = mx.array([list(tile.token_ids)])
    runner.run_few_layers(geometry, tokens, [tile.adapter])


def _decode(
    runner: ModelRunner,
    rows: int,
    length: int,
    tables: SequenceTables,
    _start: int,
) -> None:
    row = DecodeRow(tables, length - 1, 0, adapter=runner.num_adapters)
    if not runner.runs_by_layer:
        mx.eval(runner.decode(apart(row, rows)))
        return
    padded, _ = row_groups(runner.layout, [row] * rows, runner.row_group)[0]
    tokens = mx.array([[row.token_id] for row in padded])
    adapters = [row.adapter for row in padded]
    geometry = rows_geometry(runner.layout, padded)
    runner.run_few_layers(geometry, tokens, adapters)


def _draw(
    runner: ModelRunner,
    tables: SequenceTables,
    rows: int,
) -> None:
    """One whole decode step of `rows` rows of one token."""
    row = DecodeRow(tables, 0, 0, adapter=runner.num_adapters)
    samplings = [RowSampling(_HARDEST, seed, 0) for seed in range(rows)]
    sampled = runner.sample(apart(row, rows), samplings, None)
    sampled.tokens.tolist()


def apart(row: DecodeRow, count: int) -> list[DecodeRow]:
    """`count` rows like this one, of sequences of their own over the same blocks.

    Rows of one sequence would be taken for drafted tokens, for which a GPU compiles
    other kernels.
    """
    rows = []
    for _ in range(count):
        tables = SequenceTables(row.tables.groups, row.tables.state)
        rows.append(DecodeRow(tables, row.position, row.token_id, adapter=row.adapter))
    return rows
