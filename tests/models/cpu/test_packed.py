"""Packed matrices hold exactly what MLX's layers and GGUF's blocks hold."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

from rvllm_local.models.cpu.onnx_file import GraphWriter
from rvllm_local.models.cpu.packed import joined, pack, refusal
from rvllm_local.models.cpu.products import ProductWriter
from rvllm_local.models.cpu.runtime import open_session
from rvllm_local.models.gguf.blocks import FORMATS
from rvllm_local.models.gguf.mlx import repack
from rvllm_local.models.quantized import quantize_as_packed

ROWS, COLUMNS = 48, 256


def layer_of(bits: int, group: int, mode: str = "affine", seed: int = 0) -> nn.Module:
    mx.random.seed(seed)
    plain = nn.Linear(COLUMNS, ROWS, bias=False)
    plain.weight = mx.random.normal((ROWS, COLUMNS)) * 0.1 + 0.02
    return plain.to_quantized(group, bits, mode)


def dequantized(layer: nn.Module) -> np.ndarray:
    """float64, from the layer's codes by way of MLX's own unpacking."""
    if layer.mode != "affine":
        whole = mx.dequantize(
            layer.weight, layer.scales, None, layer.group_size, layer.bits, layer.mode
        )
        return np.array(whole.astype(mx.float32)).astype(np.float64)
    scales, biases = mx.ones_like(layer.scales), mx.zeros_like(layer.biases)
    codes = np.array(
        mx.dequantize(layer.weight, scales, biases, layer.group_size, layer.bits)
    )
    parts = [np.array(part).astype(np.float64) for part in (layer.scales, layer.biases)]
    spread = [np.repeat(part, layer.group_size, axis=1) for part in parts]
    return codes * spread[0] + spread[1]


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_affine_layers_keep_every_value(bits: int, group: int) -> None:
    layer = layer_of(bits, group)
    assert refusal(layer) is None
    expected = dequantized(layer)
    matrix = pack(layer)
    assert matrix.bits == (4 if bits <= 4 else 8)
    values = matrix.values(np.arange(ROWS))
    assert np.abs(values - expected).max() < 1e-6 * np.abs(expected).max()


def test_mxfp4_is_whole_numbers_of_eight_bits() -> None:
    layer = layer_of(4, 32, "mxfp4")
    expected = dequantized(layer)
    matrix = pack(layer)
    assert matrix.bits == 8 and matrix.offsets is None
    assert np.array_equal(matrix.values(np.arange(ROWS)), expected)


@pytest.mark.parametrize(
    ("number", "name", "has_offsets"),
    [(2, "Q4_0", False), (3, "Q4_1", True), (8, "Q8_0", False), (12, "Q4_K", True)],
)
def test_blocks_of_gguf_keep_every_value(
    number: int, name: str, has_offsets: bool
) -> None:
    form = FORMATS[number]
    assert form.name == name
    random = np.random.default_rng(1)
    count = ROWS * COLUMNS // form.elements
    blocks = random.integers(0, 256, (count, form.size), dtype=np.uint8)
    scales = random.uniform(0.01, 0.02, (count, 2)).astype(np.float16)
    scale_bytes = 2 if name in ("Q4_0", "Q8_0") else 4
    blocks[:, :scale_bytes] = scales.view(np.uint8)[:, :scale_bytes]
    repacked = repack(blocks, form, (ROWS, COLUMNS))
    assert repacked is not None
    parts = {
        f"weight.{part}": mx.array(getattr(repacked, part))
        for part in ("weight", "scales", "biases")
    }
    model = nn.Module()
    model.weight = nn.Linear(COLUMNS, ROWS, bias=False)
    quantize_as_packed(model, parts)
    model.load_weights(list(parts.items()))
    expected = dequantized(model.weight)
    matrix = pack(model.weight)
    assert (matrix.offsets is not None) == has_offsets
    values = matrix.values(np.arange(ROWS))
    assert np.abs(values - expected).max() < 1e-6 * np.abs(expected).max()


def test_what_the_operator_does_not_hold_is_refused_with_a_reason() -> None:
    layer = layer_of(8, 32, "mxfp8")
    assert "mxfp8" in str(refusal(layer))
    layer = layer_of(4, 32)
    layer.scales = layer.scales[:, :-1]
    assert "do not make 256 columns" in str(refusal(layer))
    layer.group_size = 48
    assert "groups of 48" in str(refusal(layer))


@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 64), (8, 32), (8, 128)])
def test_a_product_misses_only_what_rounding_activations_to_int8_explains(
    bits: int, group: int, rows: int
) -> None:
    layer = layer_of(bits, group)
    weight = dequantized(layer)
    writer = GraphWriter()
    x = writer.input("x", "float32", ("M", COLUMNS))
    product = ProductWriter(writer).packed(x, pack(layer), None)
    writer.output(product, "y", "float32", ("M", ROWS))
    inputs = np.random.default_rng(2).standard_normal((rows, COLUMNS))
    inputs = inputs.astype(np.float32)
    computed = open_session(writer.model()).run(None, {"x": inputs})[0]
    exact = inputs.astype(np.float64) @ weight.T
    # An input is off by half a step of its block; in a sum every one may be. Blocks are
    # of 32 inputs, however many share a scale and an offset.
    blocks = np.abs(inputs).reshape(rows, -1, 32)
    steps = np.repeat(blocks.max(axis=-1) / 127, 32, axis=-1)
    bound = steps / 2 @ np.abs(weight).T
    assert (np.abs(computed - exact) <= bound * 1.05 + 1e-5).all()


def test_matrices_of_one_form_are_joined_and_others_are_not() -> None:
    matrices = [pack(layer_of(4, 32, seed=seed)) for seed in (0, 1)]
    every = np.arange(ROWS)
    whole = joined(matrices)
    assert whole is not None and whole.rows == 2 * ROWS
    parts = np.concatenate([matrix.values(every) for matrix in matrices])
    assert np.array_equal(whole.values(np.arange(2 * ROWS)), parts)
    assert joined([matrices[0], pack(layer_of(8, 32))]) is None


def test_groups_of_several_blocks_keep_one_offset_each() -> None:
    matrix = pack(layer_of(4, 128))
    assert matrix.offsets is not None
    assert matrix.block == 32 and matrix.scales.shape == (ROWS, COLUMNS // 32)
    assert matrix.group == 128 and matrix.offsets.shape == (ROWS, COLUMNS // 128)
    other = pack(layer_of(4, 64))
    assert joined([matrix, other]) is None  # their sums of inputs differ
