"""Latent attention through the seam, with the kernels' text in the emulator."""

from __future__ import annotations

from rvllm_local.attention.kernels import KernelBackend
from rvllm_local.attention.latent import latent_sizes
from rvllm_local.attention.probe import probe_layout
from rvllm_local.memory.blocks import BLOCK_TOKENS
from tests.support.kernel_way import chosen_runner
from tests.support.zoo import zoo_model


def test_a_latent_takes_its_own_bytes() -> None:
    model, config = zoo_model("deepseek_v3")
    rank, rope = config["kv_lora_rank"], config["qk_rope_head_dim"]
    assert latent_sizes(model) == {(rank, rope)}
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
