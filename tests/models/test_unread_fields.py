"""A setting that changes numbers and that the definition does not know is refused."""

from __future__ import annotations

from typing import Any

import pytest

from rvllm_local.errors import ModelFileError, UnsupportedModelError
from rvllm_local.models.config_normal import normalised
from rvllm_local.models.families import build_model
from tests.support.zoo import zoo_config


@pytest.mark.parametrize(
    ("arch", "settings", "words"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu'.*llama computes silu"),
        ("qwen3", {"hidden_act": "relu2"}, "hidden_act is 'relu2'"),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv is 8.0.*olmoe does not know it"),
        ("llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30"),
        ("qwen2", {"residual_multiplier": 0.2}, "residual_multiplier is 0.2"),
    ],
)
def test_a_setting_that_would_be_dropped_is_named(
    arch: str, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        build_model({**zoo_config(arch), **settings})


@pytest.mark.parametrize(
    ("arch", "settings"),
    [
        ("llama", {"hidden_act": "silu", "clip_qkv": None, "logits_scaling": 1.0}),
        ("gemma", {"hidden_act": "gelu_pytorch_tanh"}),
        ("gpt2", {"activation_function": "gelu_new"}),
    ],
)
def test_a_setting_that_changes_nothing_is_not(
    arch: str, settings: dict[str, Any]
) -> None:
    build_model({**zoo_config(arch), **settings})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {
                "model_type": "qwen3_next",
                "layer_types": ["linear_attention", "full_attention"] * 2,
                "full_attention_interval": 4,
            },
            "full_attention_interval is 4.*every 2: they contradict",
        ),
        (
            {
                "model_type": "gemma4_text",
                "layer_types": ["full_attention"],
                "global_head_dim": 64,
                "per_layer_config": {"0": {"head_dim": 32}},
            },
            "global_head_dim is 64 and layer 0's head_dim is 32",
        ),
    ],
)
def test_two_sources_of_a_size_must_agree(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelFileError, match=words):
        normalised(config)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {
                "model_type": "qwen3_5_text",
                "layer_types": ["full_attention", "linear_attention"],
            },
            "knows nothing else",
        ),
        (
            {
                "model_type": "gemma4_text",
                "layer_types": ["sliding_attention"],
                "per_layer_config": {"0": {"head_dim": 32}},
            },
            "names layer 0, which is no full one",
        ),
        (
            {"model_type": "gemma4_text", "use_bidirectional_attention": "all"},
            "encodes text and does not answer",
        ),
    ],
)
def test_layers_that_a_definition_cannot_have_are_refused(
    config: dict[str, Any], words: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        normalised(config)


def test_infinity_is_read_as_transformers_5_writes_it() -> None:
    limit = [0.0, {"__float__": "Infinity"}]
    config = normalised({"model_type": "mamba2", "time_step_limit": limit})
    assert config["time_step_limit"] == [0.0, float("inf")]
