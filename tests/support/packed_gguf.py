"""The model of a GGUF file with its layers packed, as a GPU has them."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
from mlx import nn

from rvllm_local.models.families import build_model
from rvllm_local.models.gguf.config import gguf_config
from rvllm_local.models.gguf.reader import GGUFFile
from rvllm_local.models.gguf.weights import gguf_packed_weights
from rvllm_local.models.quantized import quantize_as_packed


def packed_module(path: Path) -> nn.Module:
    """The module, which computes in float32."""
    file = GGUFFile(path)
    config = gguf_config(file)
    module = build_model(config)
    weights = {key: mx.array(value) for key, value in gguf_packed_weights(file, config)}
    quantize_as_packed(module, weights)
    module.load_weights(list(weights.items()))
    module.set_dtype(mx.float32)
    return module
