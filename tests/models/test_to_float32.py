"""Ternary layers become float32 where MLX has no product for them."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.bitlinear_layers import BitLinear, bitnet_quantize

from rvllm_local.models.loader import load_model
from rvllm_local.models.locate import locate
from rvllm_local.models.to_float32 import widened_layer
from tests.support.tiny import save_tiny, tiny_model


def packed(ternary: np.ndarray) -> mx.array:
    """Four outputs a byte: those of the first quarter in the lowest bits."""
    codes = (ternary + 1).astype(np.uint8).reshape(4, -1, ternary.shape[1])
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8).reshape(4, 1, 1)
    return mx.array((codes << shifts).sum(axis=0).astype(np.uint8))


@pytest.mark.parametrize(("inverts", "factor"), [(False, 4.0), (True, 0.25)])
def test_a_ternary_layer_is_its_weights_times_its_scale(
    inverts: bool, factor: float
) -> None:
    ternary = np.random.default_rng(0).integers(-1, 2, (8, 6))
    layer = BitLinear(6, 8, bias=True, invert_weight_scales=inverts)
    layer.weight = packed(ternary)
    layer.weight_scale = mx.array([4.0])
    layer.bias = mx.arange(8, dtype=mx.float32)
    inputs = np.random.default_rng(1).standard_normal((3, 6)).astype(np.float32)
    computed = widened_layer("layer", layer)(mx.array(inputs))
    expected = inputs @ ternary.T * factor + np.arange(8)
    np.testing.assert_allclose(np.array(computed), expected, rtol=1e-5, atol=1e-5)


def test_a_folder_of_ternary_weights_loads(tmp_path: Path) -> None:
    """Its configuration names BitNet's quantization, whatever its architecture."""
    folder = save_tiny("llama", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    plan = {"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"]}
    config["quantization_config"] = plan
    (folder / "config.json").write_text(json.dumps(config))
    model, _ = tiny_model("llama")
    bitnet_quantize(model, plan)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    loaded = load_model(locate(str(folder)))
    projection = loaded.module.model.layers[0].self_attn.q_proj
    assert projection.weight.dtype == mx.float32
    assert bool(mx.all(projection.weight == -1).item())  # each code is 0 in this file
    logits = loaded.module(mx.array([[1, 2, 3]]))
    assert bool(mx.all(mx.isfinite(logits)).item())
