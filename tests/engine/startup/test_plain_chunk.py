"""The self-check's prompts reach mlx-lm by the tokens that its products are ready for."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

from rvllm_local.engine.startup import selfcheck
from tests.support.tiny import tiny_model


@pytest.mark.parametrize(
    ("backend", "quantizes", "chunk"),
    [("cuda", True, 1), ("cuda", False, None), ("metal", True, None)],
)
def test_quantized_weights_take_a_token_at_a_time_on_cuda(
    backend: str, quantizes: bool, chunk: int | None
) -> None:
    model, _ = tiny_model("llama", seed=1)
    if quantizes:
        nn.quantize(model, group_size=32, bits=4)
    assert selfcheck.plain_chunk(model, backend) == chunk


def test_logits_are_the_same_by_any_chunk() -> None:
    model, config = tiny_model("llama", seed=1)
    prompt = selfcheck.check_prompts(config["vocab_size"])[0]
    whole = selfcheck._plain_logits(model, prompt, None)
    by_token = selfcheck._plain_logits(model, prompt, 1)
    assert np.allclose(np.array(whole), np.array(by_token), atol=1e-4)
    assert whole.dtype == mx.float32
