"""Checks of the kernels that write, gather and move keys and values.

They run anywhere a `KernelSet` can launch, as those of `checks.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from rvllm_local.metal_kernels import KernelConfig, KernelSet
from rvllm_local.metal_kernels import descriptor as layout
from rvllm_local.metal_kernels.proof.checks import Make
from rvllm_local.metal_kernels.proof.oracle import Floats, error, floats

_ALLOWED = {mx.float32: 1e-6, mx.float16: 1e-3, mx.bfloat16: 8e-3, mx.int8: 1.2e-2}
_Q_LEN = 37
_CONTEXTS = (40, 0, 101)
_TABLES: list[list[int]] = [[3, 1], [], [2, 6, 4, 5]]


@dataclass(slots=True)
class Store:
    """An arena with its scales, and copies of both to which moves are applied."""

    arena: mx.array
    scales: mx.array | None
    expected: list[Floats]

    @classmethod
    def random(cls, config: KernelConfig, seed: int) -> Store:
        """Six blocks of whole numbers; int8 has random scales."""
        random = np.random.default_rng(seed)
        numbers = random.integers(-100, 100, config.arena_shape(6))
        arena = mx.array(numbers).astype(config.kv_dtype)
        mx.eval(arena)
        expected = [floats(arena)]
        scales = None
        if config.quantized:
            shape = config.scales_shape(6)
            scales = mx.array(random.standard_normal(shape, dtype=np.float32))
            mx.eval(scales)
            expected.append(floats(scales))
        return cls(arena, scales, expected)

    def block(self, index: int) -> bytes:
        """A block's bytes, elements before scales."""
        parts = [self.arena] if self.scales is None else [self.arena, self.scales]
        octets = [np.array(part[index].view(mx.uint8)) for part in parts]
        return b"".join(part.tobytes() for part in octets)

    def check_moved(self, kernel: str, pairs: list[tuple[int, int]]) -> None:
        """Source blocks lie in their targets too, and nothing else has changed."""
        for part in self.expected:
            for source, target in pairs:
                part[target] = part[source]
        same = np.array_equal(floats(self.arena), self.expected[0])
        assert same, f"{kernel} changed the wrong blocks"
        if self.scales is not None:
            same = np.array_equal(floats(self.scales), self.expected[1])
            assert same, f"{kernel} changed the wrong scales"


def check_write_gather(config: KernelConfig, make: Make = KernelSet) -> None:
    """kv_write puts tokens where the tables say; kv_gather brings them back."""
    kernels = make(config)
    arena = mx.zeros(config.arena_shape(8), dtype=config.kv_dtype)
    scales = _empty_scales(config)
    keys, values = _new_tokens(config)
    packed = mx.array(layout.pack(_CONTEXTS, (0, 0, 0), _TABLES, _Q_LEN))
    mx.eval(arena, packed)
    layer, fence = kernels.layer_index(1), kernels.first_fence()
    fence = kernels.kv_write(arena, scales, keys, values, packed, layer, fence)
    _check_next(kernels, fence)
    length, rows = max(_CONTEXTS), len(_CONTEXTS)
    together = kernels.kv_gather(arena, scales, packed, layer, fence, length, rows)
    for row in (0, 2):
        lone_row = layout.pack((_CONTEXTS[row],), (0,), [_TABLES[row]], _Q_LEN)
        length = _CONTEXTS[row] + 5
        alone = kernels.kv_gather(
            arena, scales, mx.array(lone_row), layer, fence, length
        )
        for part, source in enumerate((keys, values)):
            tokens = floats(source)[row]
            _check_gathered(config, alone[part][0], tokens, _CONTEXTS[row])
            _check_gathered(config, together[part][row], tokens, _CONTEXTS[row])
    _check_untouched(floats(arena))


def _empty_scales(config: KernelConfig) -> mx.array | None:
    if not config.quantized:
        return None
    scales = mx.zeros(config.scales_shape(8), dtype=mx.float32)
    mx.eval(scales)
    return scales


def _check_untouched(stored: Floats) -> None:
    assert not stored[0].any(), "the scratch block was written"
    assert not stored[7].any(), "an unowned block was written"
    assert not stored[:, 0].any(), "another layer was written"


def _new_tokens(config: KernelConfig) -> tuple[mx.array, mx.array]:
    """Keys and values as a projection leaves them: views with gaps."""
    random = np.random.default_rng(3)
    shape = (len(_CONTEXTS), _Q_LEN, config.kv_heads)
    tokens = []
    for width in (config.head_dim, config.value_width):
        dense = mx.array(random.standard_normal((*shape, width), dtype=np.float32))
        tokens.append(dense.astype(config.dtype).transpose(0, 2, 1, 3))
    mx.eval(tokens)
    return tokens[0], tokens[1]


def _check_next(kernels: KernelSet, fence: mx.array) -> None:
    """A writer's fence follows the first one."""
    first = int(np.array(kernels.first_fence())[0])
    following = (first + 1) % 2**31
    assert fence.tolist() == [following] * 8, "a writer must return the next fence"


def _check_gathered(
    config: KernelConfig,
    dense: mx.array,
    source: Floats,
    context: int,
) -> None:
    """The last tokens of the context are the written ones; the rest is zero."""
    expected = np.zeros(dense.shape)
    expected[:, context - _Q_LEN : context] = source
    worst = error(dense, expected)
    assert worst <= _ALLOWED[config.kv_dtype], f"kv_gather is off by {worst:.2e}"


def check_copy(config: KernelConfig, make: Make = KernelSet) -> None:
    """kv_copy moves whole blocks with their scales and leaves the others alone."""
    kernels, store = make(config), Store.random(config, 4)
    moves = [(1, 4), (2, 5)]
    pairs = mx.array(moves, dtype=mx.int32)
    fence = kernels.first_fence()
    mx.eval(kernels.kv_copy(store.arena, store.scales, pairs, fence))
    store.check_moved("kv_copy", moves)


def check_save_load(config: KernelConfig, make: Make = KernelSet) -> None:
    """kv_save gives a block's bytes, and kv_load puts them into another block."""
    kernels, store = make(config), Store.random(config, 5)
    fence = kernels.first_fence()
    sources = mx.array([4, 2, 0, 0, 0, 0, 0, 0], dtype=mx.int32)
    targets = mx.array([1, 5, 0, 0, 0, 0, 0, 0], dtype=mx.int32)
    mx.eval(sources, targets, fence)
    saved = kernels.kv_save(store.arena, store.scales, sources, fence, 2)
    mx.eval(saved)
    for row, source in enumerate((4, 2)):
        payload = np.array(saved[row]).tobytes()
        assert payload == store.block(source), "kv_save gave other bytes"
    mx.eval(kernels.kv_load(store.arena, store.scales, targets, saved, fence))
    store.check_moved("kv_load", [(4, 1), (2, 5)])
