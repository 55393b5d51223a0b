"""Windows that definitions do not read are masked, cached and freed as others are."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from rvllm_local.models.windows import layer_windows
from tests.support.matrix import judge
from tests.support.zoo import zoo_config, zoo_model


@pytest.mark.parametrize(
    ("arch", "settings", "keeps"),
    [
        ("gemma2", {}, "full and window"),
        ("phi3", {}, "window"),
    ],
)
def test_the_engine_gives_the_windowed_models_tokens(
    arch: str, settings: dict[str, Any], keeps: str
) -> None:
    config = {**zoo_config(arch), "sliding_window": 40, **settings}
    verdict = judge(arch, config)
    assert (verdict.verdict, verdict.detail) == ("equal", "")
    assert verdict.keeps == keeps


def test_a_token_behind_the_window_is_not_seen() -> None:
    settings = {"sliding_window": 4, "num_hidden_layers": 1}
    model, _ = zoo_model("phi3", config={**zoo_config("phi3"), **settings})
    logits = []
    for first in (5, 6):
        tokens = mx.array([[first, 7, 8, 9, 10]])
        logits.append(model(tokens)[0])
    assert mx.array_equal(logits[0][4], logits[1][4])
    assert not mx.array_equal(logits[0][3], logits[1][3])


LAYERS = {"num_hidden_layers": 4, "sliding_window": 8, "max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("config", "windows"),
    [
        ({"model_type": "gemma2"}, [8, None, 8, None]),
        ({"model_type": "mixtral"}, [8, 8, 8, 8]),
        (
            {"model_type": "starcoder2", "layer_types": ["full_attention"] * 4},
            [],
        ),
        ({"model_type": "qwen3", "max_window_layers": 2}, []),
        (
            {
                "model_type": "qwen3",
                "max_window_layers": 3,
                "use_sliding_window": True,
            },
            [None, None, None, 8],
        ),
        ({"model_type": "phi3", "sliding_window": 64}, []),
        ({"model_type": "phi3", "sliding_window": None}, []),
        ({"model_type": "llama"}, []),
    ],
)
def test_windows_of_layers(config: dict[str, Any], windows: list[int | None]) -> None:
    assert layer_windows({**LAYERS, **config}) == windows
