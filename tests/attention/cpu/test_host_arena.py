"""Keys and values of unlike sizes in an arena that the host writes."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from rvllm_local.attention.cpu.host_arena import HostArena
from rvllm_local.memory.arena import Arena, KVShape
from rvllm_local.memory.blocks import BLOCK_TOKENS

LAYERS, HEADS, KEY_DIM, VALUE_DIM = 2, 2, 24, 16


@pytest.mark.parametrize("quantized", [False, True])
def test_keys_and_values_of_unlike_sizes_are_stored_and_taken(quantized: bool) -> None:
    shape = KVShape(LAYERS, HEADS, KEY_DIM, VALUE_DIM, None, mx.float32, quantized)
    arena = HostArena.of(Arena(shape, 4))
    random = np.random.default_rng(2)
    # Two rows write three tokens each, over the end of a block.
    blocks = np.array([[3, 3, 1], [2, 2, 2]], dtype=np.int32)
    slots = np.array([[30, 31, 0], [4, 5, 6]], dtype=np.int32)
    expected = []
    for part, dim in enumerate((KEY_DIM, VALUE_DIM)):
        new = random.standard_normal((2, HEADS, 3, dim)).astype(np.float32)
        arena.write(blocks, slots, 1, part, mx.array(new))
        expected.append(new)
    tables = np.array([[3, 1], [2, 0]])
    heads = np.arange(HEADS)
    for part, new in enumerate(expected):
        planes = ((tables[:, None] * LAYERS + 1) * 2 + part) * HEADS
        index = mx.array((planes + heads[None, :, None]).astype(np.uint32))
        taken = np.array(arena.take(index, part))
        assert taken.shape == (2, HEADS, 2 * BLOCK_TOKENS, new.shape[-1])
        allowed = 0.02 if quantized else 0
        assert np.abs(taken[0, :, 30:33] - new[0]).max() <= allowed
        assert np.abs(taken[1, :, 4:7] - new[1]).max() <= allowed
    saved = arena.save(3)
    assert len(saved) == shape.block_bytes
    arena.load(2, saved)
    assert np.array_equal(arena.data[2], arena.data[3])
