"""Checks at load that a call may take several tokens of a sequence, as drafts need it."""

from __future__ import annotations

import mlx.core as mx

from rvllm_local.attention.geometry import DecodeRow, TokenChunk
from rvllm_local.engine.runner import ModelRunner
from rvllm_local.engine.startup.selfcheck import check_prompts, distance, tolerance_of
from rvllm_local.memory.tables import KVTables, SequenceTables

_CHECKED = 4  # tokens of a sequence in one call


def why_drafts_differ(runner: ModelRunner, kv: KVTables, vocab_size: int) -> str | None:
    """What is wrong with the logits of several tokens of a sequence in one call.

    They are held against those of one call a token; None if they agree.
    """
    prompt = check_prompts(vocab_size)[0]
    one_by_one = kv.new_sequence()
    together = kv.new_sequence()
    try:
        steps = []
        for row in _prefilled(runner, kv, one_by_one, prompt):
            logits = runner.decode([row])
            steps.append(logits)
        expected = mx.concatenate(steps)
        rows = _prefilled(runner, kv, together, prompt)
        computed = runner.decode(rows)
        tolerance = tolerance_of(kv.layout)
        return distance(
            [computed.astype(mx.float32)],
            [expected.astype(mx.float32)],
            tolerance,
        )
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        kv.release(one_by_one)
        kv.release(together)


def _prefilled(
    runner: ModelRunner,
    kv: KVTables,
    tables: SequenceTables,
    prompt: list[int],
) -> list[DecodeRow]:
    """The last tokens of the prompt, as rows; the ones before them are computed."""
    first = len(prompt) - _CHECKED
    kv.grow(tables, len(prompt))
    before = TokenChunk(tables, 0, prompt[:first])
    checked = TokenChunk(tables, first, prompt[first:])
    runner.prefill(before)
    return checked.rows()
