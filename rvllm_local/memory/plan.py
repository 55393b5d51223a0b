"""The memory plan: what a model will take, line by line, and what the machine has.

Arithmetic only: sizes come in as numbers, so a plan can be made before anything is
loaded.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from rvllm_local.errors import MemoryBudgetError
from rvllm_local.memory.arena import KVShape
from rvllm_local.memory.blocks import BLOCK_TOKENS
from rvllm_local.memory.layout import KVLayout
from rvllm_local.memory.scratch import (
    ModelSizes,
    host_scratch_bytes,
    scratch_bytes,
    with_room,
)

PROCESS_BYTES = 350 * 10**6  # interpreter, libraries and MLX's own pools
_MOST_COPIED = 512 * 2**20  # bytes of a prompt's dense copy
_FEWEST_SNAPSHOTS = 4
_SNAPSHOT_BYTES = 2**28
_BLOCK_HEADER = 112  # bytes of a spilled block's file beside the block


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
    # Tokens of a prefilling prompt whose keys and values are kept densely as well (on a
    # CPU), and their bytes.
    copy_tokens: int = 0
    prompt_copy: int = 0
    states: int = 0  # what recurrent layers keep, snapshots included
    quantized: bool = False  # the KV is int8 already
    weight_form: str = "as stored"  # how weights are held
    drafter: int = 0  # the smaller model that drafts: all that it takes

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
            + self.drafter
        )

    @property
    def fits(self) -> bool:
        return self.total <= self.budget

    def with_measured(self, scratch: int) -> MemoryPlan:
        """The plan after a step took `scratch` bytes.

        It allows a tenth more, and as much again for what MLX keeps.
        """
        return dataclasses.replace(self, scratch=with_room(scratch))

    def lines(self) -> dict[str, int]:
        """Every line of the plan, in bytes."""
        lines = {
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
        if self.drafter:
            lines["drafter"] = self.drafter
        return lines

    def table(self) -> str:
        """The plan for people, with remedies when it does not fit."""
        text = []
        for name, value, note in self._rows():
            line = f"{name:<10}{_size(value):>12}   {note}"
            text.append(line.rstrip())
        requests = self.arena_tokens // max(self.context, 1)
        text.append(
            f"KV: {self.bytes_per_token} bytes a token in memory, "
            f"{self.disk_bytes_per_token} on disk; room for {requests} requests "
            f"of {self.context} tokens ({self.rows} may run at once)"
        )
        text.append(self.verdict())
        for remedy in self.remedies():
            text.append(f"  - {remedy}")
        return "\n".join(text)

    def _rows(self) -> list[tuple[str, int, str]]:
        """Name, bytes and note of each row of the table."""
        kv = max(self.kv_arena, self.kv_asked)
        kv_note = f"{self.arena_tokens} tokens of {self.bytes_per_token} bytes"
        rows = [
            (
                "weights",
                self.weights,
                f"{self.weight_form}; counted from the tensors' shapes",
            ),
            ("KV arena", kv, kv_note),
        ]
        if self.states:
            rows.append(("states", self.states, "recurrent layers, with snapshots"))
        rows.append(("scratch", self.scratch, "largest prefill chunk and decode batch"))
        if self.prompt_copy:
            note = f"{self.copy_tokens} tokens, dense while it prefills"
            rows.append(("prompt", self.prompt_copy, note))
        if self.drafter:
            rows.append(("drafter", self.drafter, "a smaller model, with its KV"))
        rows.append(("process", self.process, "interpreter and libraries"))
        rows.append(("total", self.total, ""))
        budget_note = f"{_size(self.device)} less {_size(self.reserve)} for the system"
        rows.append(("budget", self.budget, budget_note))
        return rows

    def verdict(self) -> str:
        if self.fits:
            return f"fits: {_size(self.budget - self.total)} to spare"
        return f"does not fit: {_size(self.total - self.budget)} too much"

    def remedies(self) -> list[str]:
        """What would make it fit, and how much each remedy gives."""
        over = self.total - self.budget
        if over <= 0:
            return []
        remedies = []
        kv = max(self.kv_arena, self.kv_asked)
        smaller_kv = kv - over
        if smaller_kv >= 10**6:
            remedies.append(
                f"--kv-memory {smaller_kv // 10**6}MB instead of {kv // 10**6}MB"
            )
        if not self.quantized:
            remedies.append(
                f"--kv-dtype int8 stores a token in about {self.bytes_per_token // 2} "
                "bytes or less"
            )
        remedies.append(
            "a shorter --context-length: each 1000 tokens take "
            f"{_size(1000 * self.bytes_per_token)}"
        )
        fewer = 0
        if self.scratch > over:
            fewer = int(self.rows * (1 - over / self.scratch))
        if 0 < fewer < self.rows:
            remedies.append(
                f"RVLLM_MAX_ROWS={fewer} instead of {self.rows}: "
                "scratch grows with the requests that run at once"
            )
        if self.states > over:
            remedies.append(
                "a smaller max_rows: each request's recurrent state takes "
                f"{_size(self.states // self.rows)}"
            )
        if self.weights > self.budget // 2:
            remedies.append("a smaller model, or one with fewer bits a weight")
        return remedies

    def check(self) -> None:
        """Raise `MemoryBudgetError`, with the arithmetic, if the plan does not fit."""
        if self.fits:
            return
        terms = [f"weights {_size(self.weights)}"]
        if self.states:
            terms.append(f"states {_size(self.states)}")
        terms.append(f"KV arena {_size(max(self.kv_arena, self.kv_asked))}")
        terms.append(f"scratch {_size(self.scratch + self.prompt_copy)}")
        if self.drafter:
            terms.append(f"drafter {_size(self.drafter)}")
        terms.append(f"process {_size(self.process)}")
        raise MemoryBudgetError(
            f"this does not fit in memory: {' + '.join(terms)} = {_size(self.total)}, "
            f"and the budget is {_size(self.device)} - {_size(self.reserve)} = "
            f"{_size(self.budget)}; {'; or '.join(self.remedies())}"
        )


def default_reserve(device: int) -> int:
    """Bytes that the system keeps if nothing else is configured.

    An eighth of the memory: at least 1 GiB, at most half.
    """
    eighth = max(device // 8, 2**30)
    return min(eighth, device // 2)


def num_snapshots(layout: KVLayout, rows: int) -> int:
    """How many snapshots of recurrent state are kept: four a row, if they are small."""
    most = _SNAPSHOT_BYTES // max(layout.state_bytes, 1)
    return max(_FEWEST_SNAPSHOTS, min(4 * rows, most))


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

    With `copies` the context of a prefilling prompt is kept densely too, as much of it
    as `_MOST_COPIED` and half of what the budget leaves allow: prompts go on without
    it, only slower.
    """
    if reserve is None:
        reserve = default_reserve(device)
    layer_kv = 0
    full = []  # blocks of the groups without a window
    for shape, count in zip(layout.groups, blocks, strict=True):
        layer_kv = max(layer_kv, _layer_bytes(shape, count))
        if shape.window is None:
            full.append(count)
    block_bytes = sum(shape.block_bytes for shape in layout.groups)
    disk_block_bytes = block_bytes + _BLOCK_HEADER * len(layout.groups)
    if copies and sizes.dtype_bytes == 4:
        scratch = host_scratch_bytes(sizes, layout, blocks, rows, chunk, context)
    else:
        scratch = scratch_bytes(sizes, rows, chunk, context, layer_kv)
    num_states = 2 * rows + num_snapshots(layout, rows)
    plan = MemoryPlan(
        weights=weights,
        kv_arena=layout.total_bytes(blocks),
        scratch=scratch,
        process=PROCESS_BYTES,
        device=device,
        reserve=reserve,
        context=context,
        rows=rows,
        bytes_per_token=block_bytes // BLOCK_TOKENS,
        disk_bytes_per_token=disk_block_bytes // BLOCK_TOKENS,
        arena_tokens=(min(full or blocks) - 1) * BLOCK_TOKENS,
        kv_asked=kv_asked,
        states=layout.state_bytes * num_states,
        quantized=any(shape.quantized for shape in layout.groups),
    )
    if copies:
        return _with_copy(plan, layout)
    return plan


def _with_copy(plan: MemoryPlan, layout: KVLayout) -> MemoryPlan:
    block_bytes = 0  # of one block's copy, in all groups without a window
    for shape in layout.groups:
        if shape.window is None:
            block_bytes += _layer_bytes(shape, 1) * shape.num_layers
    if block_bytes == 0:
        return plan
    spare = min(_MOST_COPIED, (plan.budget - plan.total) // 2)
    most_tokens = min(plan.context, plan.arena_tokens)
    most_blocks = most_tokens // BLOCK_TOKENS + 1
    blocks = min(most_blocks, max(0, spare) // block_bytes)
    return dataclasses.replace(
        plan,
        copy_tokens=blocks * BLOCK_TOKENS,
        prompt_copy=blocks * block_bytes,
    )


def _layer_bytes(shape: KVShape, blocks: int) -> int:
    """Bytes of one layer's keys and values in so many blocks, as attention reads them."""
    tokens = blocks * BLOCK_TOKENS
    return tokens * 2 * shape.kv_heads * shape.width * shape.dtype.size


def _size(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if abs(count) >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
