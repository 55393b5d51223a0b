"""The memory plan: what a model will take, line by line, against what the machine can give.

Arithmetic only: sizes come in as numbers, so a plan can be made before anything is loaded.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from rvllm_local.errors import MemoryBudgetError
from rvllm_local.memory.arena import KVShape
from rvllm_local.memory.blocks import BLOCK_TOKENS
from rvllm_local.memory.layout import KVLayout

PROCESS_BYTES = 350 * 10**6  # interpreter, libraries and MLX's own pools
_MOST_COPIED = 512 * 2**20  # bytes of a prompt's dense copy
_QUERY_BLOCK = 128  # queries whose scores are computed at once
_FEWEST_SNAPSHOTS = 4
_SNAPSHOT_BYTES = 2**28
_BLOCK_HEADER = 112  # bytes of a spilled block's file beside the block


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """The widths that scratch memory follows from: a model's largest activations."""

    hidden: int
    intermediate: int
    vocab: int
    heads: int
    dtype_bytes: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes of each line, what there is for them, and the figures that explain them."""

    weights: int
    kv_arena: int
    scratch: int
    process: int
    device: int  # what the machine has
    reserve: int  # what is left to the system
    context: int
    rows: int
    bytes_per_token: int
    disk_bytes_per_token: int
    arena_tokens: int
    kv_asked: int = 0  # what the user gave as kv_memory; the arena may need less
    copy_tokens: int = 0  # tokens of a prefilling prompt whose keys and values are kept densely as well (on a CPU)
    prompt_copy: int = 0  # bytes of that
    states: int = 0  # what recurrent layers keep, snapshots included
    quantized: bool = False  # the KV is int8 already
    weight_form: str = "as stored"  # how weights are held

    @property
    def budget(self) -> int:
        return self.device - self.reserve

    @property
    def total(self) -> int:
        return (
            self.weights
            + max(self.kv_arena, self.kv_asked)
            + self.scratch
            + self.prompt_copy
            + self.process
            + self.states
        )

    @property
    def fits(self) -> bool:
        return self.total <= self.budget

    def with_measured(self, scratch: int) -> MemoryPlan:
        """The plan after a step took `scratch` bytes: a tenth more, and as much again for what MLX keeps."""
        return dataclasses.replace(self, scratch=2 * (scratch + scratch // 10))

    def lines(self) -> dict[str, int]:
        """Every line of the plan, in bytes."""
        return {
            "weights": self.weights,
            "kv_arena": self.kv_arena,
            "states": self.states,
            "scratch": self.scratch,
            "prompt_copy": self.prompt_copy,
            "process": self.process,
            "total": self.total,
            "device": self.device,
            "reserve": self.reserve,
            "budget": self.budget,
        }

    def table(self) -> str:
        """The plan for people, with remedies when it does not fit."""
        rows = [
            (
                "weights",
                self.weights,
                f"{self.weight_form}; read from the files' headers",
            ),
            (
                "KV arena",
                max(self.kv_arena, self.kv_asked),
                f"{self.arena_tokens} tokens of {self.bytes_per_token} bytes",
            ),
            ("scratch", self.scratch, "largest prefill chunk and decode batch"),
            *(
                [
                    (
                        "prompt",
                        self.prompt_copy,
                        f"{self.copy_tokens} tokens, dense while it prefills",
                    )
                ]
                if self.prompt_copy
                else []
            ),
            ("process", self.process, "interpreter and libraries"),
            ("total", self.total, ""),
            (
                "budget",
                self.budget,
                f"{_size(self.device)} less {_size(self.reserve)} for the system",
            ),
        ]
        if self.states:
            rows.insert(2, ("states", self.states, "recurrent layers, with snapshots"))
        text = [
            f"{name:<10}{_size(value):>12}   {note}".rstrip()
            for name, value, note in rows
        ]
        text.append(
            f"KV: {self.bytes_per_token} bytes a token in memory, {self.disk_bytes_per_token} on disk; room for "
            f"{self.arena_tokens // max(self.context, 1)} requests of {self.context} tokens ({self.rows} may run at once)"
        )
        text += [self.verdict(), *(f"  - {remedy}" for remedy in self.remedies())]
        return "\n".join(text)

    def verdict(self) -> str:
        if self.fits:
            return f"fits: {_size(self.budget - self.total)} to spare"
        return f"does not fit: {_size(self.total - self.budget)} too much"

    def remedies(self) -> list[str]:
        """What would make it fit, with what each gives."""
        over = self.total - self.budget
        if over <= 0:
            return []
        remedies = []
        kv = max(self.kv_arena, self.kv_asked)
        if kv - over >= 10**6:
            remedies.append(
                f"--kv-memory {(kv - over) // 10**6}MB instead of {kv // 10**6}MB"
            )
        if not self.quantized:
            remedies.append(
                f"--kv-dtype int8 stores a token in about {self.bytes_per_token // 2} bytes or less"
            )
        remedies.append(
            f"a shorter --context-length: each 1000 tokens take {_size(1000 * self.bytes_per_token)}"
        )
        fewer = int(self.rows * (1 - over / self.scratch)) if self.scratch > over else 0
        if 0 < fewer < self.rows:
            remedies.append(
                f"RVLLM_MAX_ROWS={fewer} instead of {self.rows}: scratch grows with the requests that run at once"
            )
        if self.states > over:
            remedies.append(
                f"a smaller max_rows: each request's recurrent state takes {_size(self.states // self.rows)}"
            )
        if self.weights > self.budget // 2:
            remedies.append("a smaller model, or one with fewer bits a weight")
        return remedies

    def check(self) -> None:
        """Raise `MemoryBudgetError`, with the arithmetic, if the plan does not fit."""
        states = f" + states {_size(self.states)}" if self.states else ""
        if not self.fits:
            raise MemoryBudgetError(
                f"this does not fit in memory: weights {_size(self.weights)}{states} + KV arena {_size(max(self.kv_arena, self.kv_asked))} + scratch "
                f"{_size(self.scratch + self.prompt_copy)} + process {_size(self.process)} = {_size(self.total)}, and the budget is "
                f"{_size(self.device)} - {_size(self.reserve)} = {_size(self.budget)}; {'; or '.join(self.remedies())}"
            )


def default_reserve(device: int) -> int:
    """What the system keeps when nothing else is configured: an eighth, at least 1 GiB, at most half."""
    return min(max(device // 8, 2**30), device // 2)


def scratch_bytes(
    sizes: ModelSizes,
    rows: int,
    chunk: int,
    context: int,
    layer_kv: int,
) -> int:
    """An upper estimate of what is alive at once beside weights and arena.

    A chunk through the widest layer (four arrays of the hidden and three of the intermediate width, twice), sampling (six
    float32 arrays over the vocabulary), one layer's gathered KV (`layer_kv` bytes of the arena, with as much again for
    padding, keys and values apart), and the scores of a block of queries against a whole context. All that twice: MLX
    keeps freed buffers for the next ones. A started engine measures instead (`engine.warmup`).
    """
    tokens = max(chunk, rows)
    layer = tokens * (4 * sizes.hidden + 3 * sizes.intermediate) * sizes.dtype_bytes
    scores = 2 * 4 * sizes.heads * min(chunk, _QUERY_BLOCK) * context
    return 2 * (2 * layer + 6 * 4 * rows * sizes.vocab + 4 * layer_kv + scores)


def num_snapshots(layout: KVLayout, rows: int) -> int:
    """Snapshots of recurrent state that are kept: some for each row, as long as they are small."""
    return max(
        _FEWEST_SNAPSHOTS, min(4 * rows, _SNAPSHOT_BYTES // max(layout.state_bytes, 1))
    )


def make_plan(
    layout: KVLayout,
    *,
    weights: int,
    blocks: tuple[int, ...],
    sizes: ModelSizes,
    device: int,
    reserve: int | None,
    context: int,
    rows: int,
    chunk: int,
    kv_asked: int = 0,
    copies: bool = False,
) -> MemoryPlan:
    """The plan of an engine with `blocks` blocks in each group's arena.

    With `copies` the context of a prefilling prompt is kept densely too, as much of it as `_MOST_COPIED` and half of what
    the budget leaves allow: prompts go on without it, only slower.
    """
    arena = sum(
        count * shape.block_bytes
        for count, shape in zip(blocks, layout.groups, strict=True)
    )
    block_bytes = sum(shape.block_bytes for shape in layout.groups)
    sized = list(zip(layout.groups, blocks, strict=True))
    full = [
        count
        for count, shape in zip(blocks, layout.groups, strict=True)
        if shape.window is None
    ]
    plan = MemoryPlan(
        weights=weights,
        kv_arena=arena,
        scratch=scratch_bytes(
            sizes,
            rows,
            chunk,
            context,
            max(_layer_bytes(shape, n) for shape, n in sized),
        ),
        process=PROCESS_BYTES,
        device=device,
        reserve=default_reserve(device) if reserve is None else reserve,
        context=context,
        rows=rows,
        bytes_per_token=block_bytes // BLOCK_TOKENS,
        disk_bytes_per_token=(block_bytes + _BLOCK_HEADER * len(layout.groups))
        // BLOCK_TOKENS,
        arena_tokens=(min(full or blocks) - 1) * BLOCK_TOKENS,
        kv_asked=kv_asked,
        states=layout.state_bytes * (2 * rows + num_snapshots(layout, rows)),
        quantized=any(shape.quantized for shape in layout.groups),
    )
    return _with_copy(plan, layout) if copies else plan


def _with_copy(plan: MemoryPlan, layout: KVLayout) -> MemoryPlan:
    whole = [shape for shape in layout.groups if shape.window is None]
    block = sum(_layer_bytes(shape, 1) * shape.num_layers for shape in whole)
    if block == 0:
        return plan
    spare = min(_MOST_COPIED, (plan.budget - plan.total) // 2)
    blocks = min(
        min(plan.context, plan.arena_tokens) // BLOCK_TOKENS + 1, max(0, spare) // block
    )
    return dataclasses.replace(
        plan, copy_tokens=blocks * BLOCK_TOKENS, prompt_copy=blocks * block
    )


def _layer_bytes(shape: KVShape, blocks: int) -> int:
    """Bytes of one layer's keys and values as attention reads them, when the whole arena is in use."""
    return blocks * BLOCK_TOKENS * 2 * shape.kv_heads * shape.width * shape.dtype.size


def _size(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if abs(count) >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
