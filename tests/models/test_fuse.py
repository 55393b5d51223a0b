"""Fused projections compute what the single ones computed, and keep nothing alive."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx import nn

from rvllm_local.models.fuse import fuse_projections
from tests.support.tiny import tiny_model


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3_text"])
@pytest.mark.parametrize("bits", [None, 4])
def test_fused_logits_are_the_same(architecture: str, bits: int | None) -> None:
    model, _ = tiny_model(architecture, seed=4)
    if bits is not None:
        nn.quantize(model, group_size=32, bits=bits)
    tokens = mx.array([[1, 5, 9, 3]])
    expected = model(tokens)
    mx.eval(expected)
    assert fuse_projections(model) > 0
    got = model(tokens)
    assert mx.allclose(got, expected, rtol=1e-4, atol=1e-4).item()


def test_layers_that_differ_are_left_alone() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_proj = nn.Linear(64, 32, bias=False)
            self.up_proj = nn.Linear(64, 32, bias=True)

    assert fuse_projections(Mixed()) == 0
