"""The load-time self-check: the engine's logits must equal plain mlx-lm's.

If they do not, the model is refused. Two short sequences are prefilled in odd chunks
and decoded together, once through mlx-lm's caches and once through the arenas. Of the
ways of calling the family that agree, the fastest one is used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np
from mlx import nn

from rvllm_local.attention.geometry import DecodeRow, TokenChunk
from rvllm_local.attention.probe import plain_caches
from rvllm_local.engine.run_mode import RunMode
from rvllm_local.engine.runner import ModelRunner
from rvllm_local.errors import UnsupportedModelError
from rvllm_local.memory.arena import KVShape
from rvllm_local.memory.layout import KVLayout
from rvllm_local.memory.tables import KVTables
from rvllm_local.metal_kernels import default_backend

_LENGTHS = (39, 8)  # tokens; the first crosses a block boundary
_CHUNK = 23
_DECODE_STEPS = 2
_ROW_GROUP = 16  # rows of a decode call in the deterministic mode
_FEWER_ROWS = (2, 3, 5, 8, 12, 16)  # in each of a compiled step's sizes
# Shares of the largest logit.
_TOLERANCE = {
    mx.float32: 1e-3,
    mx.float16: 3e-2,
    mx.bfloat16: 1e-1,
}
_LARGEST_TOLERANCE = 1e-1  # of all other types, and of int8 KV


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
    """A runner in the fastest mode whose logits agree with plain mlx-lm.

    rotates: the kernels can rotate for the model.
    joins: the kernels can add to its residual stream.

    Raises `UnsupportedModelError` with the distance, or the failure, of each mode
    tried.
    """
    modes = run_modes(paged=paged)
    if paged and rotates:
        mode = RunMode(batched=True, dense=False, rotates=True)
        modes.insert(0, mode)
    if paged and joins:
        mode = RunMode(batched=True, dense=False, rotates=rotates, joins=True)
        modes.insert(0, mode)
    prompts = check_prompts(vocab_size)
    chunk = plain_chunk(model, default_backend())
    expected = [_plain_logits(model, prompt, chunk) for prompt in prompts]
    tolerance = tolerance_of(kv.layout)
    judge = functools.partial(distance, expected=expected, tolerance=tolerance)
    return first_agreeing(make_runner, modes, kv, prompts, judge)


def tolerance_of(layout: KVLayout) -> float:
    """How far logits may be from each other, as a share of the largest."""
    return max(_tolerance(shape) for shape in layout.groups)


def _tolerance(shape: KVShape) -> float:
    if shape.quantized:
        return _LARGEST_TOLERANCE
    return _TOLERANCE.get(shape.dtype, _LARGEST_TOLERANCE)


def run_modes(*, paged: bool) -> list[RunMode]:
    """The modes that any back end may serve, fastest first."""
    batched_dense = RunMode(batched=True, dense=True)
    by_row_dense = RunMode(batched=False, dense=True)
    if not paged:
        return [batched_dense, by_row_dense]
    return [
        RunMode(batched=True, dense=False),
        batched_dense,
        RunMode(batched=False, dense=False),
        by_row_dense,
    ]


def first_agreeing(
    make_runner: Callable[[RunMode], ModelRunner],
    modes: Sequence[RunMode],
    kv: KVTables,
    prompts: list[list[int]],
    judge: Judge,
) -> ModelRunner:
    """A runner in the first mode whose logits `judge` has nothing against.

    It gets those of the last two tokens of each prompt. Raises `UnsupportedModelError`
    as `find_agreeing_runner` does.
    """
    findings = []
    for mode in modes:
        runner = make_runner(mode)
        compute = functools.partial(_paged_logits, runner, kv, prompts)
        finding = _try(compute, judge)
        if finding is None:
            return runner
        findings.append(f"{_mode_in_words(mode)}: {finding}")
    raise UnsupportedModelError(
        "this model's logits through the paged arena differ from mlx-lm's, "
        f"so it is not served ({'; '.join(findings)})"
    )


def _mode_in_words(mode: RunMode) -> str:
    if mode.joins:
        return "added and normed in one launch"
    if mode.rotates:
        return "rotated by the kernels"
    if mode.batched:
        return "batched"
    return "row by row"


def make_rows_independent(
    runner: ModelRunner,
    kv: KVTables,
    vocab_size: int,
    *,
    tries_fewer: bool = False,
) -> None:
    """Put the runner in the deterministic mode, with the rows that a call may have.

    `_ROW_GROUP` if a row's logits are the same bit for bit, wherever it stands in such
    a call and whoever stands beside it; else 1. With `tries_fewer` a call has no
    padding if they are the same among any fewer, too.
    """
    prompts = check_prompts(vocab_size)
    tables = [kv.new_sequence() for _ in prompts]
    try:
        rows = []
        runner.make_deterministic(_ROW_GROUP)
        for row, prompt in zip(tables, prompts, strict=True):
            kv.grow(row, len(prompt))
            runner.prefill(TokenChunk(row, 0, prompt[:-1]))
            rows.append(DecodeRow(row, len(prompt) - 1, prompt[-1]))
        subject = _Subject(runner, *rows)
        if tries_fewer:
            runner.make_deterministic(_ROW_GROUP, pads=False)
            if subject.keeps_bits(_FEWER_ROWS, every_place=False):
                return
        runner.make_deterministic(_ROW_GROUP)
        if not subject.keeps_bits((_ROW_GROUP,), every_place=True):
            runner.make_deterministic(1)
    finally:
        for row in tables:
            kv.release(row)


class _Subject:
    """A row whose logits must be the same alone and beside a neighbour.

    The subject is the shorter one: neighbours may make it wider, never narrower.
    """

    def __init__(
        self,
        runner: ModelRunner,
        neighbour: DecodeRow,
        subject: DecodeRow,
    ) -> None:
        self._runner = runner
        self._neighbour = neighbour
        self._row = subject
        self._states = []
        for row in (neighbour, subject):
            state = row.tables.state
            self._states.append((state, state.batch, state.row))

    def keeps_bits(self, sizes: Sequence[int], *, every_place: bool) -> bool:
        """True if the logits are those of the row alone in calls of these sizes.

        Without `every_place` it stands first, and last.
        """
        expected = self._decoded([self._row])[0]
        for size in sizes:
            places = range(size) if every_place else (0, size - 1)
            for index in places:
                rows = [self._neighbour] * size
                rows[index] = self._row
                logits = self._decoded(rows)[index]
                if not bool(mx.array_equal(logits, expected).item()):
                    return False
        return True

    def _decoded(self, rows: list[DecodeRow]) -> mx.array:
        """The logits, from the states that the rows began with."""
        for state, batch, number in self._states:
            state.put(batch, number)
        return self._runner.decode(rows)


def check_prompts(vocab_size: int) -> list[list[int]]:
    """Token ids, the same at each start."""
    random = np.random.default_rng(7)
    longest = max(_LENGTHS) + _DECODE_STEPS
    shape = (len(_LENGTHS), longest)
    tokens = random.integers(0, vocab_size, size=shape).tolist()
    prompts = []
    for row, length in zip(tokens, _LENGTHS, strict=True):
        prompts.append(row[: length + _DECODE_STEPS])
    return prompts


def plain_chunk(model: nn.Module, backend: str) -> int | None:
    """Tokens of a prompt that mlx-lm gets at once; None for all.

    MLX's CUDA build compiles its product of several rows with quantized weights when it
    is first called, which takes half a minute. That of one row is there.
    """
    if backend != "cuda":
        return None
    has_packed = any(
        isinstance(module.get("scales"), mx.array) for module in model.modules()
    )
    return 1 if has_packed else None


def _plain_logits(model: nn.Module, prompt: list[int], chunk: int | None) -> mx.array:
    """[steps, vocab] logits of the last tokens of `prompt`, one step each.

    The tokens before them go in by chunks.
    """
    caches = plain_caches(model)
    first = prompt[:-_DECODE_STEPS]
    size = chunk or len(first)
    for start in range(0, len(first), size):
        model(mx.array([first[start : start + size]]), cache=caches)
    steps = []
    for token in prompt[-_DECODE_STEPS:]:
        step_logits = model(mx.array([[token]]), cache=caches)
        steps.append(step_logits[0, -1])
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
            num_prefilled = len(prompt) - _DECODE_STEPS
            for start in range(0, num_prefilled, _CHUNK):
                end = min(start + _CHUNK, num_prefilled)
                kv.grow(row, end)
                runner.prefill(TokenChunk(row, start, prompt[start:end]))
                kv.trim_windows(row, end)
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
        by_prompt = []
        for index in range(len(prompts)):
            prompt_logits = [logits[index] for logits in steps]
            by_prompt.append(mx.stack(prompt_logits))
        return by_prompt
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


def distance(
    computed: Sequence[mx.array],
    expected: Sequence[mx.array],
    tolerance: float,
) -> str | None:
    """What is wrong if a logit is further away than `tolerance`, else None.

    The tolerance is a share of the largest logit.
    """
    for ours, theirs in zip(computed, expected, strict=True):
        scale = float(mx.max(mx.abs(theirs)))
        largest = float(mx.max(mx.abs(ours - theirs)))
        share = largest / max(scale, 1e-6)
        if not share <= tolerance:
            return f"relative distance {share:.2g}, more than {tolerance:g}"
    return None
