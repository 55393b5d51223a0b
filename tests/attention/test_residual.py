"""The residual stream that waits for its norm: it adds up to the same, and says no to what it does not know."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx import nn

from rvllm_local.attention.residual import (
    JoinedNorm,
    ResidualStream,
    StreamedEmbedding,
    install_joined_adds,
)
from rvllm_local.metal_kernels import AddNorm, QuantizedMatmul
from rvllm_local.metal_kernels.launch import Dispatch
from rvllm_local.models.products import QuantizedProducts, install_products
from tests.support.tiny import tiny_model
from tests.support.zoo import zoo_model


def launch_with_mlx(dispatch: Dispatch) -> list[mx.array]:
    """What the kernel computes, by MLX's own operations."""
    stream, added, weight = dispatch.inputs
    return [stream + added, mx.fast.rms_norm(stream + added, weight, 1e-5)]


def test_a_model_computes_the_same_with_its_additions_joined() -> None:
    model, _ = tiny_model("llama", seed=5)
    tokens = mx.array([[3], [7]])
    expected = model(tokens)
    joined = install_joined_adds(model, AddNorm(launcher=launch_with_mlx))
    assert joined is not None
    assert mx.array_equal(model(tokens), expected).item(), (
        "nothing changes while it is off"
    )
    with joined.on():
        assert mx.allclose(model(tokens), expected, atol=1e-5).item()
    layers = len(model.layers)
    assert joined.add_norm.counter.snapshot() == {"add_norm": 2 * layers}
    assert not joined.are_on


@pytest.mark.parametrize(
    "arch", ["gemma4_text", "seed_oss", "qwen3_next", "kimi_linear"]
)
def test_definitions_that_read_a_norms_weight_or_gate_it_find_what_they_need(
    arch: str,
) -> None:
    model, _ = zoo_model(arch)
    tokens = mx.array([[3, 9, 4]])
    expected = model(tokens)
    mx.eval(expected)
    install_joined_adds(model, AddNorm(launcher=launch_with_mlx))
    assert mx.array_equal(model(tokens), expected).item()


def test_a_quantized_embedding_that_the_kernels_serve_streams_too() -> None:
    model, _ = tiny_model("llama", seed=5)
    nn.quantize(model, group_size=32, bits=4)
    products = QuantizedProducts(
        [QuantizedMatmul(backend="metal", launcher=multiply_with_mlx)], always=True
    )
    install_products(model, products, mx.float32)
    joined = install_joined_adds(model, AddNorm(launcher=launch_with_mlx))
    assert joined is not None
    assert isinstance(model.model.embed_tokens, StreamedEmbedding)


def multiply_with_mlx(dispatch: Dispatch) -> list[mx.array]:
    """A product with 4-bit weights in groups of 32."""
    x, words, scales, biases = dispatch.inputs
    return [mx.quantized_matmul(x, words, scales, biases, group_size=32, bits=4)]


def test_a_second_engine_takes_the_stand_ins_over() -> None:
    model, _ = tiny_model("llama", seed=5)
    install_joined_adds(model, AddNorm())
    joined = install_joined_adds(model, AddNorm())
    found = [
        module
        for module in model.modules()
        if isinstance(module, JoinedNorm | StreamedEmbedding)
    ]
    assert found and all(module.joined is joined for module in found)
    assert all(isinstance(module.inner, nn.RMSNorm | nn.Embedding) for module in found)


def test_a_model_without_such_norms_is_left_alone() -> None:
    assert (
        install_joined_adds(
            nn.Sequential(nn.Embedding(8, 16), nn.LayerNorm(16)), AddNorm()
        )
        is None
    )


def test_norms_are_known_by_what_they_compute() -> None:
    """Gemma multiplies by one more than the weight; a layer norm is no RMS norm."""
    model, _ = tiny_model("gemma2", seed=5)
    assert install_joined_adds(model, AddNorm()) is not None
    norm = model.model.norm
    assert isinstance(norm, JoinedNorm)
    assert mx.array_equal(norm.scale, 1.0 + norm.inner.weight).item()
    layer = nn.Sequential(nn.LayerNorm(16))
    install_joined_adds(layer, AddNorm())
    assert not any(isinstance(module, JoinedNorm) for module in layer.modules())


def test_what_was_not_normed_is_added_all_the_same() -> None:
    one, two = mx.ones((1, 1, 16)), mx.full((1, 1, 16), 2.0)
    stream = (ResidualStream(one) * 3.0 + two) + one
    assert stream.shape == (1, 1, 16) and stream.dtype == mx.float32
    assert mx.array_equal(stream.array, mx.full((1, 1, 16), 6.0)).item()


def test_other_uses_of_the_stream_fail_so_that_the_self_check_sees_them() -> None:
    stream = ResidualStream(mx.ones((1, 1, 16)))
    for use in (
        lambda: mx.ones((1, 1, 16)) + stream,
        lambda: mx.fast.layer_norm(stream, None, None, 1e-5),
    ):
        with pytest.raises((TypeError, ValueError)):
            use()
