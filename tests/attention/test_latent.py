"""Latent attention through the seam, with the kernels' text in the emulator."""

from __future__ import annotations

from types import SimpleNamespace

import mlx.core as mx
import pytest
from mlx import nn

from rvllm_local.attention.absorbed import keep_latents, multiply_by_head
from rvllm_local.attention.cpu.reference import ReferenceBackend
from rvllm_local.attention.kernels import KernelBackend
from rvllm_local.attention.latent import latent_sizes
from rvllm_local.attention.probe import probe_layout
from rvllm_local.attention.seam import install
from rvllm_local.engine.run_mode import RunMode
from rvllm_local.engine.runner import ModelRunner
from rvllm_local.engine.startup.selfcheck import find_agreeing_runner
from rvllm_local.errors import UnsupportedModelError
from rvllm_local.memory.arena import Arena
from rvllm_local.memory.blocks import BLOCK_TOKENS
from rvllm_local.memory.tables import KVTables
from tests.support.kernel_way import chosen_runner
from tests.support.zoo import zoo_model


def test_a_latent_takes_its_own_bytes() -> None:
    model, config = zoo_model("deepseek_v3")
    rank, rope = config["kv_lora_rank"], config["qk_rope_head_dim"]
    assert latent_sizes(model) == {(1, rank, rope)}
    (shape,) = probe_layout(model).groups
    assert shape.latent
    layers = config["num_hidden_layers"]
    token_bytes = layers * (rank + rope) * shape.dtype.size
    assert shape.block_bytes == BLOCK_TOKENS * token_bytes


def test_a_model_without_latents_keeps_none() -> None:
    model, _ = zoo_model("deepseek")
    assert latent_sizes(model) == set()
    assert not any(shape.latent for shape in probe_layout(model).groups)


def test_latents_decode_in_a_compiled_step() -> None:
    runner = chosen_runner("deepseek_v3")
    assert runner.mode.batched and not runner.mode.dense
    assert runner.mode.rotates
    backend = runner._backend
    assert isinstance(backend, KernelBackend)
    assert backend.counter.snapshot()["latent_decode"] > 0
    assert "paged_decode" not in backend.counter.snapshot()


def test_what_an_index_chooses_is_gathered_by_the_kernels() -> None:
    """DeepSeek 3.2 reads some of its latents: it attends by itself, to all rows at once."""
    runner = chosen_runner("deepseek_v32")
    assert runner.mode.batched and runner.mode.dense
    assert runner.backend_name == "kernels"


@pytest.mark.parametrize("arch", ["deepseek_v2", "minicpm3"])
def test_expanded_latents_are_kept_as_they_are(arch: str) -> None:
    runner = chosen_runner(arch)
    (shape,) = runner.layout.groups
    assert shape.latent
    assert runner.mode.batched and not runner.mode.dense
    backend = runner._backend
    assert isinstance(backend, KernelBackend)
    assert backend.counter.snapshot()["latent_decode"] > 0


def test_the_reference_attends_to_kept_latents() -> None:
    model, config = zoo_model("deepseek_v2")
    paged = install(model)
    keep_latents(model)
    layout = probe_layout(model)
    blocks = layout.split_budget(2_000_000, context=128, max_rows=2, chunk=32)
    arenas = [Arena(shape, n) for shape, n in zip(layout.groups, blocks, strict=True)]
    backend = ReferenceBackend(arenas)

    def make(mode: RunMode) -> ModelRunner:
        return ModelRunner(model, layout, backend, mode, config["vocab_size"])

    kv = KVTables(layout, blocks)
    runner = find_agreeing_runner(
        model, make, kv, paged=paged, vocab_size=config["vocab_size"]
    )
    assert runner.mode == RunMode(batched=True, dense=True)


def test_a_quantized_projection_is_absorbed() -> None:
    mx.random.seed(3)
    heads, plain, values, rank = 2, 16, 8, 64
    projection = nn.Linear(rank, heads * (plain + values), bias=False)
    quantized = nn.QuantizedLinear.from_linear(projection, group_size=32, bits=8)
    projection.weight = mx.dequantize(
        quantized.weight, quantized.scales, quantized.biases, 32, 8
    )
    queries = mx.random.normal((3, heads, 1, plain))
    attended = mx.random.normal((3, heads, 1, rank))
    sizes = {"num_heads": heads, "qk_nope_head_dim": plain}
    dense = SimpleNamespace(kv_b_proj=projection, **sizes)
    packed = SimpleNamespace(kv_b_proj=quantized, **sizes)
    for x, to_latent in ((queries, True), (attended, False)):
        expected = multiply_by_head(dense, x, to_latent=to_latent)
        product = multiply_by_head(packed, x, to_latent=to_latent)
        assert product.shape == expected.shape
        assert mx.abs(product - expected).max().item() < 1e-4
    unknown = SimpleNamespace(kv_b_proj=nn.Identity(), **sizes)
    with pytest.raises(UnsupportedModelError, match="Identity cannot be absorbed"):
        multiply_by_head(unknown, queries, to_latent=True)
