"""The load-time self-check: the engine's logits must equal plain mlx-lm's, or the model is refused.

Two short sequences are prefilled in odd chunks and decoded together, once through mlx-lm's caches and once
through the arenas. The best way of calling the family that agrees is the one that is used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np
from mlx import nn

from rvllm_local.attention.geometry import DecodeRow
from rvllm_local.attention.probe import plain_caches
from rvllm_local.engine.run_mode import RunMode
from rvllm_local.engine.runner import ModelRunner
from rvllm_local.errors import UnsupportedModelError
from rvllm_local.memory.tables import KVTables

_LENGTHS = (39, 8)  # tokens; the first crosses a block boundary
_CHUNK = 23
_DECODE_STEPS = 2
_ROW_GROUP = 16  # rows of a decode call in the deterministic mode
_TOLERANCE = {
    mx.float32: 1e-3,
    mx.float16: 3e-2,
    mx.bfloat16: 1e-1,
}  # of the largest logit


# Says what is wrong with logits `[tokens, vocab]` of each prompt; None if nothing is.
Judge = Callable[[Sequence[mx.array]], str | None]


def find_agreeing_runner(
    model: nn.Module,
    make_runner: Callable[[RunMode], ModelRunner],
    kv: KVTables,
    *,
    paged: bool,
    vocab_size: int,
    rotates: bool = False,
    joins: bool = False,
) -> ModelRunner:
    """A runner in the fastest mode whose logits agree with plain mlx-lm. `rotates`: the kernels can rotate for it; `joins`:
    they can add to its residual stream.

    Raises `UnsupportedModelError` with the distance, or the failure, of each way tried.
    """
    modes = run_modes(paged=paged)
    if paged and rotates:
        modes.insert(0, RunMode(batched=True, dense=False, rotates=True))
    if paged and joins:
        modes.insert(0, RunMode(batched=True, dense=False, rotates=rotates, joins=True))
    prompts = check_prompts(vocab_size)
    expected = [_plain_logits(model, prompt) for prompt in prompts]
    tolerance = max(
        1e-1 if shape.quantized else _TOLERANCE.get(shape.dtype, 1e-1)
        for shape in kv.layout.groups
    )
    judge = functools.partial(_distance, expected=expected, tolerance=tolerance)
    return first_agreeing(make_runner, modes, kv, prompts, judge)


def run_modes(*, paged: bool) -> list[RunMode]:
    """The ways of calling a model that any back end may serve, fastest first."""
    modes = [RunMode(batched=False, dense=True)]
    if paged:
        modes = [
            RunMode(batched=True, dense=False),
            RunMode(batched=False, dense=False),
            *modes,
        ]
    modes.insert(1 if paged else 0, RunMode(batched=True, dense=True))
    return modes


def first_agreeing(
    make_runner: Callable[[RunMode], ModelRunner],
    modes: Sequence[RunMode],
    kv: KVTables,
    prompts: list[list[int]],
    judge: Judge,
) -> ModelRunner:
    """A runner in the first mode whose logits `judge` has nothing against.

    It gets those of the last two tokens of each prompt. Raises `UnsupportedModelError` as `find_agreeing_runner` does.
    """
    findings = []
    for mode in modes:
        runner = make_runner(mode)
        finding = _try(functools.partial(_paged_logits, runner, kv, prompts), judge)
        if finding is None:
            return runner
        findings.append(f"{_way(mode)}: {finding}")
    raise UnsupportedModelError(
        f"this model's logits through the paged arena differ from mlx-lm's, so it is not served ({'; '.join(findings)})"
    )


def _way(mode: RunMode) -> str:
    """A mode in words."""
    if mode.joins:
        return "added and normed in one launch"
    return (
        "rotated by the kernels"
        if mode.rotates
        else "batched"
        if mode.batched
        else "row by row"
    )


def rows_are_independent(
    runner: ModelRunner,
    kv: KVTables,
    vocab_size: int,
) -> int:
    """Rows a decode call may have in the deterministic mode: `_ROW_GROUP` if a row's logits are bit for bit the same in
    every place of such a call and beside any neighbours, else 1.
    """
    runner.make_deterministic(_ROW_GROUP)
    prompts = check_prompts(vocab_size)
    tables = [kv.new_sequence() for _ in prompts]
    try:
        for row, prompt in zip(tables, prompts, strict=True):
            kv.grow(row, len(prompt))
            runner.prefill(row, 0, prompt[:-1])
        (
            other,
            subject,
        ) = (  # the shorter one is watched: neighbours may make it wider, never narrower
            DecodeRow(row, len(prompt) - 1, prompt[-1])
            for row, prompt in zip(tables, prompts, strict=True)
        )
        states = [(row.state, row.state.batch, row.state.row) for row in tables]
        expected = runner.decode([subject])[0]
        for index in range(1, _ROW_GROUP):
            for state, batch, number in states:
                state.put(batch, number)
            rows = [other] * index + [subject] + [other] * (_ROW_GROUP - index - 1)
            if not bool(mx.array_equal(runner.decode(rows)[index], expected).item()):
                return 1
        return _ROW_GROUP
    finally:
        for row in tables:
            kv.release(row)


def check_prompts(vocab_size: int) -> list[list[int]]:
    """Token ids, the same at each start."""
    random = np.random.default_rng(7)
    longest = max(_LENGTHS) + _DECODE_STEPS
    tokens = random.integers(0, vocab_size, size=(len(_LENGTHS), longest)).tolist()
    return [
        row[: length + _DECODE_STEPS]
        for row, length in zip(tokens, _LENGTHS, strict=True)
    ]


def _plain_logits(model: nn.Module, prompt: list[int]) -> mx.array:
    """[steps, vocab] logits of the last tokens of `prompt`, one step each."""
    caches = plain_caches(model)
    model(mx.array([prompt[:-_DECODE_STEPS]]), cache=caches)
    steps = [
        model(mx.array([[token]]), cache=caches)[0, -1]
        for token in prompt[-_DECODE_STEPS:]
    ]
    logits = mx.stack(steps).astype(mx.float32)
    mx.eval(logits)
    return logits


def _paged_logits(
    runner: ModelRunner,
    kv: KVTables,
    prompts: list[list[int]],
) -> list[mx.array]:
    tables = [kv.new_sequence() for _ in prompts]
    try:
        for row, prompt in zip(tables, prompts, strict=True):
            start = 0
            while start < len(prompt) - _DECODE_STEPS:
                chunk = prompt[start : min(start + _CHUNK, len(prompt) - _DECODE_STEPS)]
                kv.grow(row, start + len(chunk))
                runner.prefill(row, start, chunk)
                start += len(chunk)
                kv.trim_windows(row, start)
        steps = []
        for step in range(-_DECODE_STEPS, 0):
            rows = []
            for row, prompt in zip(tables, prompts, strict=True):
                position = len(prompt) + step
                kv.grow(row, position + 1)
                rows.append(DecodeRow(row, position, prompt[position]))
            logits = runner.decode(rows).astype(mx.float32)
            mx.eval(logits)
            steps.append(logits)
        return [
            mx.stack([logits[row] for logits in steps]) for row in range(len(prompts))
        ]
    finally:
        for row in tables:
            kv.release(row)


def _try(compute: Callable[[], list[mx.array]], judge: Judge) -> str | None:
    """None if the computed logits pass, otherwise what went wrong."""
    try:
        computed = compute()
    except (
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
        RuntimeError,
        UnsupportedModelError,
    ) as error:
        return f"{type(error).__name__}: {error}"
    return judge(computed)


def _distance(
    computed: Sequence[mx.array],
    expected: Sequence[mx.array],
    tolerance: float,
) -> str | None:
    """None if no logit is further away than `tolerance`, a share of the largest one."""
    for ours, theirs in zip(computed, expected, strict=True):
        scale = float(mx.max(mx.abs(theirs)))
        distance = float(mx.max(mx.abs(ours - theirs))) / max(scale, 1e-6)
        if not distance <= tolerance:
            return f"relative distance {distance:.2g}, more than {tolerance:g}"
    return None
