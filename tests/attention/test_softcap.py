"""Attention that caps its logits: right beside float64 in every way that a CPU computes it, and no more than the cap."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from mlx import nn

from rvllm_local.attention.backend import AttentionCall
from rvllm_local.attention.cpu.reference import ReferenceBackend
from rvllm_local.attention.dense import dense_attention
from rvllm_local.attention.geometry import call_geometry
from rvllm_local.attention.probe import plain_caches, probe_layout
from rvllm_local.attention.seam import install
from rvllm_local.engine.run_mode import RunMode
from rvllm_local.engine.runner import ModelRunner
from rvllm_local.engine.startup.selfcheck import find_agreeing_runner
from rvllm_local.errors import UnsupportedModelError
from rvllm_local.memory.arena import Arena, KVShape
from rvllm_local.memory.layout import KVLayout, LayerSlot
from rvllm_local.memory.tables import KVTables
from tests.support.tiny import tiny_model

HEADS, KV_HEADS, DIM = 4, 2, 16
CALL = AttentionCall(0.8, softcap=2.0)  # scores of about 3: most of them reach the cap
SLOT = LayerSlot(0, 0)
TOLERANCE = {mx.float32: 1e-5, mx.bfloat16: 3e-2}
Numbers = npt.NDArray[np.float64]


class Contexts:
    """A one-layer arena with sequences of some lengths, and their keys and values."""

    def __init__(
        self,
        lengths: Sequence[int],
        dtype: mx.Dtype = mx.float32,
        window: int | None = None,
    ) -> None:
        shape = KVShape(1, KV_HEADS, DIM, DIM, window, dtype)
        self.layout, self.window = KVLayout((shape,), (SLOT,)), window
        self.kv = KVTables(self.layout, [64])
        self.backend = ReferenceBackend([Arena(shape, 64)])
        self.random = np.random.default_rng(5)
        self.lengths, self.dtype = list(lengths), dtype
        self.keys, self.values = (
            [self.some(KV_HEADS, length) for length in lengths] for _ in range(2)
        )
        self.tables = [self.kv.new_sequence() for _ in lengths]
        for row, length in enumerate(lengths):
            self.kv.grow(self.tables[row], length)

    def some(self, heads: int, tokens: int) -> mx.array:
        return mx.array(
            self.random.standard_normal((1, heads, tokens, DIM)).astype(np.float32)
        ).astype(self.dtype)

    def write(self, row: int, start: int, end: int) -> None:
        """The keys and values of some tokens of one sequence."""
        geometry = call_geometry(self.layout, [self.tables[row]], [start], end - start)
        self.backend.begin(geometry).write(
            SLOT, self.keys[row][:, :, start:end], self.values[row][:, :, start:end]
        )

    def expected(
        self, row: int, queries: mx.array, softcap: float = CALL.softcap
    ) -> Numbers:
        """[heads, tokens, dim] of the last tokens of a sequence, in float64."""
        q, k, v = (
            _float64(part)[0] for part in (queries, self.keys[row], self.values[row])
        )
        k, v = (part.repeat(HEADS // KV_HEADS, axis=0) for part in (k, v))
        logits = q @ k.swapaxes(-1, -2) * CALL.scale
        logits = np.tanh(logits / softcap) * softcap
        keys, places = (
            np.arange(k.shape[1]),
            np.arange(k.shape[1] - q.shape[1], k.shape[1])[:, None],
        )
        visible = (keys <= places) & (keys > places - (self.window or k.shape[1]))
        weights = np.where(visible, np.exp(logits), 0)
        found: Numbers = weights / weights.sum(axis=-1, keepdims=True) @ v
        return found


def _float64(array: mx.array) -> Numbers:
    return np.array(array.astype(mx.float32)).astype(np.float64)


@pytest.mark.parametrize(
    "dtype", [mx.float32, mx.bfloat16], ids=["float32", "bfloat16"]
)
@pytest.mark.parametrize("window", [None, 24])
@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize(
    "lengths", [(5, 9), (300, 330), (400, 3, 3)], ids=["few", "many", "ragged"]
)
def test_one_token_a_row(
    lengths: tuple[int, ...], by_row: bool, window: int | None, dtype: mx.Dtype
) -> None:
    contexts = Contexts(lengths, dtype, window)
    for row, length in enumerate(lengths):
        contexts.write(row, 0, length)
    geometry = call_geometry(
        contexts.layout, contexts.tables, [length - 1 for length in lengths], 1
    )
    queries = mx.concatenate([contexts.some(HEADS, 1) for _ in lengths])
    found = _float64(
        contexts.backend.begin(geometry, by_row=by_row).decode(SLOT, queries, CALL)
    )
    for row in range(len(lengths)):
        expected = contexts.expected(row, queries[row : row + 1])
        assert np.abs(found[row] - expected).max() < TOLERANCE[dtype]
    uncapped = contexts.expected(0, queries[:1], softcap=1e6)
    assert np.abs(found[0] - uncapped).max() > 2 * TOLERANCE[dtype], (
        "a cap that changes nothing proves nothing"
    )


@pytest.mark.parametrize(
    "dtype", [mx.float32, mx.bfloat16], ids=["float32", "bfloat16"]
)
@pytest.mark.parametrize("window", [None, 24])
def test_a_chunk_of_a_prompt(window: int | None, dtype: mx.Dtype) -> None:
    contexts = Contexts([210], dtype, window)
    contexts.write(0, 0, 40)
    contexts.write(0, 40, 210)
    queries = contexts.some(HEADS, 170)
    session = contexts.backend.begin(
        call_geometry(contexts.layout, contexts.tables, [40], 170)
    )
    found = _float64(session.prefill(SLOT, queries, CALL))[0]
    assert np.abs(found - contexts.expected(0, queries)).max() < TOLERANCE[dtype]


def test_masks_of_dense_attention() -> None:
    contexts = Contexts([9, 9])
    queries = mx.concatenate([contexts.some(HEADS, 4) for _ in range(2)])
    keys, values = mx.concatenate(contexts.keys), mx.concatenate(contexts.values)
    causal = dense_attention(queries, keys, values, CALL, "causal")
    mask = mx.array(np.tril(np.ones((4, 9), dtype=np.bool_), k=5))
    assert mx.array_equal(dense_attention(queries, keys, values, CALL, mask), causal)
    assert mx.array_equal(
        dense_attention(queries, keys, values, CALL, mx.stack([mask, mask])[:, None]),
        causal,
    )
    with pytest.raises(UnsupportedModelError, match="adds a mask"):
        dense_attention(queries, keys, values, CALL, mx.zeros((4, 9)))
    with pytest.raises(
        UnsupportedModelError, match="both a soft-cap and attention sinks"
    ):
        dense_attention(
            queries,
            keys,
            values,
            AttentionCall(0.8, mx.zeros((HEADS,)), softcap=2.0),
            None,
        )


def served(model: nn.Module, vocab_size: int) -> RunMode:
    """The way of calling a model that the self-check chooses on a CPU."""
    paged = install(model)
    layout = probe_layout(model)
    blocks = layout.split_budget(2_000_000, context=128, max_rows=2, chunk=32)
    backend = ReferenceBackend(
        [
            Arena(shape, count)
            for shape, count in zip(layout.groups, blocks, strict=True)
        ]
    )

    def make(mode: RunMode) -> ModelRunner:
        return ModelRunner(model, layout, backend, mode, vocab_size)

    return find_agreeing_runner(
        model, make, KVTables(layout, blocks), paged=paged, vocab_size=vocab_size
    ).mode


def with_a_norm_that_its_call_leaves_out(model: nn.Module) -> None:
    for layer in model.layers:
        layer.self_attn.q_norm = nn.RMSNorm(layer.self_attn.head_dim)


def without_a_cap(model: nn.Module) -> None:
    for layer in model.layers:
        layer.self_attn.attn_logit_softcapping = None


@pytest.mark.parametrize(
    ("arch", "change", "mode"),
    [
        ("gemma2", None, RunMode(batched=True, dense=False)),
        ("gear", None, RunMode(batched=True, dense=False)),
        ("gear", without_a_cap, RunMode(batched=True, dense=False)),
        (
            "gemma2",
            with_a_norm_that_its_call_leaves_out,
            RunMode(batched=False, dense=True),
        ),
    ],
)
def test_the_self_check_judges_the_stand_in(
    arch: str, change: Callable[[nn.Module], None] | None, mode: RunMode
) -> None:
    model, config = tiny_model(arch, seed=4)
    if change is not None:
        change(model)
    assert served(model, config["vocab_size"]) == mode


def test_mlx_lm_with_its_own_caches_computes_as_ever() -> None:
    model, _ = tiny_model("gemma2", seed=4)
    tokens = mx.array([[3, 7, 11, 2]])
    attention = type(model.layers[0].self_attn)
    assert install(model) and install(model)
    stand_in = attention.__call__
    assert not hasattr(stand_in.original, "original"), "installed once"
    found = model(tokens, cache=plain_caches(model))
    try:
        attention.__call__ = stand_in.original
        assert mx.array_equal(model(tokens, cache=plain_caches(model)), found)
    finally:
        attention.__call__ = stand_in
