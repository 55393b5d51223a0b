"""Configurations that say two things, or less than they must, are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from rvllm_local.errors import RvllmError
from rvllm_local.models.families import build_model
from tests.support.tiny import tiny_config

LLAMA = tiny_config("llama")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_attention_heads": 5}, "num_attention_heads is 5 .*heads is 2"),
        ({"num_key_value_heads": 3}, "which does not divide it"),
        ({"layer_types": ["full_attention"]}, "has 1 entries, and the model has 3"),
        ({"layer_types": ["chunked_attention"] * 3}, "'chunked_attention'"),
        ({"attention_multiplier": 0.1}, "attention_multiplier is 0.1"),
        ({"rope_theta": "1e6"}, "rope_theta must be a positive number"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": "8"}}, "factor '8'"),
        ({"rope_scaling": {"type": "linear", "rope_type": "yarn"}}, "contradict"),
        ({"rope_parameters": {"rope_theta": 5.0}}, "rope_theta is 10000.0 .* 5.0"),
        ({"hidden_size": 64.0}, "hidden_size must be an integer"),
        ({"vocab_size": -1}, "vocab_size must be an integer"),
        ({"hidden_act": "gelu"}, "computes silu"),
        ({"final_logit_softcapping": 30.0}, "does not know it"),
        ({"eos_token_id": "2"}, "eos_token_id must be a token id"),
        ({"sliding_window": 1.5}, "sliding_window must be a number of tokens"),
        ({"rms_norm_eps": 0}, "rms_norm_eps must be a positive number"),
        ({"tie_word_embeddings": "yes"}, "must be true or false"),
        ({"model_type": "siglip"}, "'siglip' is not supported"),
    ],
)
def test_a_contradiction_is_named(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(RvllmError, match=match):
        build_model({**LLAMA, "rope_theta": 10000.0, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": None},
        {"rope_scaling": {}},
        {"rope_scaling": {"rope_type": "default"}},
        {"num_key_value_heads": None},
        {"head_dim": None},
        {"quantization_config": None},
        {"auto_map": {"AutoModel": "modeling_x.X"}},
        {"pretraining_tp": 2},
        {"eos_token_id": []},
        {"layer_types": None},
    ],
)
def test_what_says_nothing_is_no_fault(changes: dict[str, Any]) -> None:
    build_model({**LLAMA, **changes})


def test_yarns_factor_follows_from_the_lengths() -> None:
    settings = {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 128,
    }
    config = {**LLAMA, "max_position_embeddings": 512, "rope_parameters": settings}
    config.pop("rope_theta", None)
    stated = {**config, "rope_parameters": {**settings, "factor": 4.0}}
    periods = [
        build_model(each).layers[0].self_attn.rope._freqs.tolist()
        for each in (config, stated)
    ]
    assert periods[0] == periods[1]
