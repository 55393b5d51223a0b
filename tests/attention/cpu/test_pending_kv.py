"""A lone token's keys and values: attention has them at once, the arena before anything else touches it."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from rvllm_local.attention.cpu.reference import ReferenceBackend
from rvllm_local.attention.cpu.session import ReferenceSession
from rvllm_local.attention.geometry import call_geometry
from rvllm_local.memory.arena import Arena, KVShape
from rvllm_local.memory.blocks import BlockTable
from rvllm_local.memory.layout import KVLayout, LayerSlot
from rvllm_local.memory.tables import SequenceTables

WIDTH = 8
FIRST, SECOND = LayerSlot(0, 0), LayerSlot(0, 1)


def new_token(start: float) -> tuple[mx.array, mx.array]:
    keys = mx.arange(start, start + 2 * WIDTH).reshape(1, 2, 1, WIDTH)
    return keys, -keys


class Call:
    """Decode calls of one row whose context lies in the blocks 2 and 1."""

    def __init__(self, dtype: mx.Dtype) -> None:
        shape = KVShape(2, 2, WIDTH, WIDTH, None, dtype)
        self.layout = KVLayout((shape,), (FIRST, SECOND))
        self.arena = Arena(shape, 4)
        self.backend = ReferenceBackend([self.arena])
        self.tables = SequenceTables((BlockTable([2, 1]),))

    def begin(self, position: int) -> ReferenceSession:
        return self.backend.begin(
            call_geometry(self.layout, [self.tables], [position], 1)
        )

    def stored(self, block: int, layer: int, slot: int) -> list[float]:
        """The first head's key."""
        return self.arena.array[block, layer, 0, 0, slot].astype(mx.float32).tolist()


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_attention_sees_the_token_before_it_is_stored(dtype: mx.Dtype) -> None:
    call = Call(dtype)
    for position in (0, 33):
        session = call.begin(position)
        keys, values = new_token(position)
        session.write(FIRST, keys, values)
        context = session.gather(FIRST)
        assert context[0].shape == (1, 2, position + 1, WIDTH)
        assert mx.array_equal(context[0][:, :, -1:], keys).item()
        assert mx.array_equal(context[1][:, :, -1:], values).item()
    assert call.stored(2, 0, 0) == list(range(WIDTH)), (
        "stored before the second call began"
    )
    assert call.stored(1, 0, 1) == [0.0] * WIDTH
    call.backend.flush()
    assert call.stored(1, 0, 1) == list(range(33, 33 + WIDTH))


def test_what_reads_the_blocks_finds_it_stored() -> None:
    call = Call(mx.float32)
    session = call.begin(0)
    session.write(SECOND, *new_token(5))
    (saved,) = call.backend.save_blocks(0, [2])
    data = np.frombuffer(saved, np.float32).reshape(2, 2, 2, 32, WIDTH)
    assert data[1, 0, 0, 0].tolist() == list(range(5, 5 + WIDTH))
    assert not data[0].any(), "the first layer wrote nothing"


def test_a_layer_that_writes_nothing_reads_what_is_stored() -> None:
    call = Call(mx.float32)
    session = call.begin(0)
    session.write(FIRST, *new_token(1))
    assert not mx.any(session.gather(SECOND)[0]).item()
