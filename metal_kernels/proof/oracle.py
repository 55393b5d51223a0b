"""Paged attention in float64 numpy, and random cases for it: contexts, shuffled or shared tables, arenas."""

from __future__ import annotations

from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from rvllm_local.metal_kernels import descriptor as layout
from rvllm_local.metal_kernels.config import KernelConfig

Floats = npt.NDArray[np.float64]
BLOCK = layout.BLOCK_TOKENS
TOLERANCE = {mx.float32: 1e-5, mx.float16: 2e-3, mx.bfloat16: 2e-2}


@dataclass(slots=True)
class Case:
    """An arena with `len(contexts)` rows of `query_len` new tokens.

    Tables cover positions from `firsts` on.
    """

    config: KernelConfig
    contexts: tuple[int, ...]
    query_len: int = 1
    firsts: tuple[int, ...] | None = None
    shared: bool = False
    rows: int | None = None
    max_blocks: int | None = None
    seed: int = 0
    layer: int = 0
    tables: list[list[int]] = field(init=False)
    arena: mx.array = field(init=False)
    scales: mx.array | None = field(init=False)
    queries: mx.array = field(init=False)
    descriptor: mx.array = field(init=False)

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.seed)
        self.firsts = self.firsts or (0,) * len(self.contexts)
        num_blocks = self._deal_blocks(random)
        self._fill_arena(random, num_blocks)
        rows = len(self.contexts) if self.rows is None else self.rows
        c = self.config
        shape = (rows, self.query_len, c.num_heads, c.head_dim)
        dense = mx.array(random.standard_normal(shape, dtype=np.float32))
        # As projections leave them: transposed views, not dense arrays.
        self.queries = dense.astype(c.dtype).transpose(0, 2, 1, 3)
        packed = layout.pack(
            self.contexts,
            self.firsts,
            self.tables,
            self.query_len,
            rows=rows,
            max_blocks=self.max_blocks,
        )
        self.descriptor = mx.array(packed)
        mx.eval(self.arena, self.queries, self.descriptor)

    def _deal_blocks(self, random: np.random.Generator) -> int:
        """Give each row shuffled blocks. Returns the arena's, the scratch block included.

        With `shared` every row starts
        with the first row's, as after a prefix hit.
        """
        counts = []
        for context, first in zip(self.contexts, self.firsts or (), strict=True):
            counts.append(-(-max(context - first, 0) // BLOCK))
        ids = list(random.permutation(np.arange(1, sum(counts) + 1)))
        self.tables = [[int(ids.pop()) for _ in range(count)] for count in counts]
        if self.shared:
            longest = self.tables[0]
            for table in self.tables[1:]:
                share = min(len(table), len(longest)) // 2
                table[:share] = longest[:share]
        return sum(counts) + 1

    def _fill_arena(self, random: np.random.Generator, num_blocks: int) -> None:
        c = self.config
        shape, self.scales = c.arena_shape(num_blocks), None
        if c.quantized:
            self.arena = mx.array(random.integers(-127, 128, shape, dtype=np.int8))
            self.scales = mx.array(
                random.uniform(0.002, 0.02, shape[:-1]).astype(np.float32)
            )
            mx.eval(self.scales)
            return
        stored = random.standard_normal(shape, dtype=np.float32)
        used = np.zeros((num_blocks, BLOCK), bool)
        for table, context, first in zip(
            self.tables, self.contexts, self.firsts or (), strict=True
        ):
            for i, block in enumerate(table):
                used[block, : max(0, context - first - i * BLOCK)] = True
        stored[np.broadcast_to(~used[:, None, None, None, :, None], shape)] = (
            np.nan
        )  # a stale slot may hold anything
        self.arena = mx.array(stored).astype(c.kv_dtype)

    def dense(self, row: int) -> tuple[Floats, Floats]:
        """Keys and values `[kv_heads, tokens, D]` of a row, from its first position to its context's end."""
        planes = floats(self.arena)[
            self.tables[row], self.layer
        ]  # [blocks, 2, kv_heads, 32, D]
        if self.scales is not None:
            planes = (
                planes * floats(self.scales)[self.tables[row], self.layer][..., None]
            )
        joined = planes.transpose(1, 2, 0, 3, 4).reshape(
            2, self.config.kv_heads, -1, self.config.head_dim
        )
        length = self.contexts[row] - (self.firsts or (0,))[row]
        return joined[0, :, :length], joined[1, :, :length]

    def expected(
        self,
        *,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
        sinks: mx.array | None = None,
    ) -> Floats:
        """What paged_decode must return, `[rows, heads, q_len, D]`."""
        out = np.zeros(self.queries.shape)
        for row, context in enumerate(self.contexts):
            if context == 0:
                continue
            keys, values = self.dense(row)
            keys = np.repeat(keys, self.config.group, axis=0)
            values = np.repeat(values, self.config.group, axis=0)
            logits = np.einsum("hqd,htd->hqt", floats(self.queries)[row], keys) * scale
            if softcap:
                logits = softcap * np.tanh(logits / softcap)
            logits = np.where(self._hidden(row, window)[None], -np.inf, logits)
            weights = _softmax(logits, sinks)
            out[row] = np.einsum("hqt,htd->hqd", weights, values)
        return out

    def _hidden(self, row: int, window: int) -> npt.NDArray[np.bool_]:
        """[q_len, tokens]: keys that a query of the row does not see."""
        context = self.contexts[row]
        first = (self.firsts or (0,))[row]
        keys = np.arange(first, context)[None, :]
        queries = np.arange(context - self.query_len, context)[:, None]
        hidden: npt.NDArray[np.bool_] = keys > queries
        if window:
            hidden = hidden | (keys <= queries - window)
        return hidden


def _softmax(logits: Floats, sinks: mx.array | None) -> Floats:
    """Weights `[heads, q_len, tokens]`; sinks take weight and have no column."""
    extra = np.full((*logits.shape[:2], 1), -np.inf)
    if sinks is not None:
        extra[:] = floats(sinks)[:, None, None]
    top = np.maximum(logits.max(-1, keepdims=True), extra)
    weights = np.exp(logits - top)
    total = weights.sum(-1, keepdims=True) + np.exp(extra - top)
    normed: Floats = weights / total
    return normed


def floats(array: mx.array) -> Floats:
    return np.array(array.astype(mx.float32)).astype(np.float64)


def error(actual: mx.array, expected: Floats) -> float:
    """The largest error relative to the largest expected value.

    NaN counts as infinite.
    """
    difference = np.abs(floats(actual) - expected).max() / max(
        float(np.abs(expected).max()), 1e-6
    )
    return float(difference) if np.isfinite(difference) else float("inf")
