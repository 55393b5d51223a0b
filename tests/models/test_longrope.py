"""A model with longrope rotates by the factors of the context that it is loaded for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from rvllm_local.models.config_normal import normalised
from rvllm_local.models.families import build_model
from rvllm_local.models.loader import load_model
from rvllm_local.models.locate import locate
from rvllm_local.models.longrope import served_factors, with_factors_for
from tests.support.tiny import tiny_config

SHORT, LONG = [1.5] * 8, [3.0] * 8
FACTORS = {"short_factor": SHORT, "long_factor": LONG}


def config_of(spelling: str, **more: Any) -> dict[str, Any]:
    config = {
        **tiny_config("phi3"),
        "max_position_embeddings": 512,
        "original_max_position_embeddings": 64,
    }
    settings = {**FACTORS, **more}
    if spelling == "rope_parameters":
        settings |= {"rope_theta": 1e4, "original_max_position_embeddings": 64}
        config.pop("rope_theta", None)
        return {**config, spelling: {"rope_type": "longrope", **settings}}
    return {**config, "rope_scaling": {"type": "su", **settings}}


def factor_of(config: dict[str, Any], context: int | None) -> float:
    """The factor of the slowest pair of dimensions but one, which all have here."""
    rope = build_model(with_factors_for(config, context)).layers[0].self_attn.rope
    base = 10_000.0 ** (np.arange(8) / 8)
    return float((np.array(rope._freqs) / base)[3])


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
def test_the_context_decides(spelling: str) -> None:
    config = config_of(spelling)
    assert factor_of(config, None) == pytest.approx(3.0)
    assert factor_of(config, 65) == pytest.approx(3.0)
    assert factor_of(config, 64) == pytest.approx(1.5)
    short = {**config, "max_position_embeddings": 64}
    assert factor_of(short, None) == pytest.approx(1.5)


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
def test_it_is_told_which_factors_serve(spelling: str) -> None:
    config = config_of(spelling)
    assert "long texts; with --context 64" in str(served_factors(normalised(config)))
    short = normalised({**config, "max_position_embeddings": 64})
    assert "short texts" in str(served_factors(short))
    assert served_factors(normalised(tiny_config("llama"))) is None


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, (1 + np.log(8) / np.log(64)) ** 0.5),
        ({"attention_factor": 1.25}, 1.25),
        ({"factor": 4.0}, (1 + np.log(4) / np.log(64)) ** 0.5),
        ({"factor": 1.0}, 1.0),
    ],
)
def test_a_stated_attention_factor_is_taken(
    settings: dict[str, float], scale: float
) -> None:
    config = config_of("rope_parameters", **settings)
    rope = build_model(config).layers[0].self_attn.rope
    assert rope._scale == pytest.approx(scale)


def test_two_contexts_are_two_models(tmp_path: Path) -> None:
    """Keys and values of one must never be served to the other."""
    config = config_of("rope_scaling")
    module = build_model(config)
    weights = dict(tree_flatten(module.parameters()))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), weights)
    (tmp_path / "config.json").write_text(json.dumps(config))
    files = locate(str(tmp_path))
    prints = [load_model(files, context=length).fingerprint for length in (64, 128)]
    assert prints[0] != prints[1]
    assert load_model(files).fingerprint == prints[1]
