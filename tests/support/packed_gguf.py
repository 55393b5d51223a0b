"""The model of a GGUF file with its layers packed, as a GPU has them."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
from mlx import nn

from rvllm_local.models.loader import open_native
from rvllm_local.models.locate import locate


def packed_module(path: Path) -> nn.Module:
    """The module, which computes in float32."""
    module = open_native(locate(str(path))).module
    module.set_dtype(mx.float32)
    return module
