"""The kernel back end under real models: the very text that Metal compiles, executed by the emulator.

The engine's own self-check is the judge: logits through the kernels against plain mlx-lm's.
"""

from __future__ import annotations

import pytest

from rvllm_local.attention.kernels import KernelBackend
from rvllm_local.attention.probe import probe_layout
from rvllm_local.attention.seam import install
from rvllm_local.engine.runner import ModelRunner, RunMode
from rvllm_local.engine.selfcheck import choose_runner
from rvllm_local.errors import UnsupportedModelError
from rvllm_local.memory.arena import Arena, KVShape
from rvllm_local.memory.tables import KVTables
from tests.emulator import Emulator
from tests.support.tiny import tiny_model


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt_oss"])
def test_kernels_agree_with_mlx_lm(architecture: str) -> None:
    model, config = tiny_model(architecture, seed=3)
    paged = install(model)
    layout = probe_layout(model)
    blocks = layout.split_budget(2_000_000, context=128, max_rows=2, chunk=32)
    backend = KernelBackend([Arena(shape, n) for shape, n in zip(layout.groups, blocks)], launcher=Emulator())
    kv = KVTables(layout, blocks)
    runner = choose_runner(
        model,
        lambda mode: ModelRunner(model, layout, backend, mode, config["vocab_size"]),
        kv,
        paged=paged,
        vocab_size=config["vocab_size"],
    )
    assert runner.mode == RunMode(batched=True, dense=False)
    assert backend.num_dispatches > 0
    assert kv.blocks_free == kv.blocks_total


def test_a_shape_without_a_kernel_is_named() -> None:
    import mlx.core as mx

    with pytest.raises(UnsupportedModelError, match="head size 24"):
        KernelBackend([Arena(KVShape(1, 1, 24, 24, None, mx.float32), 2)])
    with pytest.raises(UnsupportedModelError, match="values of 16"):
        KernelBackend([Arena(KVShape(1, 1, 32, 16, None, mx.float32), 2)])
