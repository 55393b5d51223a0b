"""A rotation means the same in both spellings, and contradictions are refused."""

from __future__ import annotations

import json
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

from rvllm_local.errors import ModelFileError, RvllmError, UnsupportedModelError
from rvllm_local.models.architecture import known_families
from rvllm_local.models.config_check import check_config
from rvllm_local.models.config_normal import normalised
from rvllm_local.models.families import build_model
from tests.models.test_references import FOLDER, NAMES, logits_of
from tests.support.tiny import tiny_config
from tests.support.zoo import zoo_config, zoo_model

TOKENS = mx.array([[3, 77, 5, 210, 9, 41, 8, 300, 12, 6, 90, 33]])
OLD_KEYS = ("rope_theta", "partial_rotary_factor", "rope_scaling")
NO_MODEL = {  # the zoo has none of these
    "bitnet",
    "deepseek_v41",
    "gemma3n",
    "kimi_k3",
    "minimax_m3_vl",
    "muse_spark",
    "olmo",
    "phi3small",
    "prism_hadamard_qwen35",
}
FIXED_BASE = {"recurrent_gemma"}  # rotates by 10,000, whatever is stated
# Families that came after the older spelling; their definitions read the newer one.
NEW_SPELLING_ALONE = {"ministral3", "mistral3", "qwen3_5", "qwen3_5_moe"}
ARCHITECTURES = sorted(known_families() - NO_MODEL)


def part_of(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a configuration that has the rotation."""
    part: dict[str, Any] = config.get("text_config") or config
    return part


def in_old_spelling(arch: str) -> dict[str, Any] | None:
    """A tiny configuration with a base that is no default; None without a base."""
    config = zoo_config(arch)
    part = part_of(config)
    if "rope_theta" not in part or "rope_parameters" in part:
        return None
    part["rope_theta"] = 5000.0
    return config


def in_new_spelling(config: dict[str, Any]) -> dict[str, Any]:
    """The same configuration as transformers 5 saves it."""
    config = json.loads(json.dumps(config))
    part = part_of(config)
    scaling = part.pop("rope_scaling", None) or {}
    kind = scaling.pop("type", None) or scaling.get("rope_type", "default")
    settings = {"rope_type": kind, **scaling}
    for key in OLD_KEYS:
        if part.get(key) is not None:
            settings[key] = part.pop(key)
    part["rope_parameters"] = settings
    return config


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_both_spellings_give_the_same_logits(arch: str) -> None:
    old = in_old_spelling(arch)
    if old is None:
        return  # this family has no base, or only the newer spelling
    new = in_new_spelling(old)
    assert "rope_theta" not in part_of(new)
    if arch in FIXED_BASE:
        for config in (old, new):
            with pytest.raises(UnsupportedModelError, match="base 5000"):
                build_model(config)
        return
    assert mx.array_equal(logits(arch, old), logits(arch, new)).item()


def logits(arch: str, config: dict[str, Any]) -> mx.array:
    mx.random.seed(0)  # some definitions draw their biases
    module, _ = zoo_model(arch, config=config)
    output: mx.array = module(TOKENS)
    return output


@pytest.mark.parametrize("name", NAMES)
def test_references_are_the_same_in_the_old_spelling(name: str) -> None:
    reference = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    old = normalised(reference["config"])
    part = part_of(old)
    settings = part.get("rope_parameters") or {}
    if not settings or any(isinstance(value, dict) for value in settings.values()):
        return  # none, or by layer: the older spelling has no word for it
    if old["model_type"] in NEW_SPELLING_ALONE:
        return
    del part["rope_parameters"]
    new = logits_of(reference["config"], reference)
    np.testing.assert_array_equal(logits_of(old, reference), new)


@pytest.mark.parametrize("name", NAMES)
def test_normalising_twice_changes_nothing(name: str) -> None:
    reference = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    once = normalised(reference["config"])
    assert normalised(once) == once


BASE = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "vocab_size": 384,
    "max_position_embeddings": 2048,
}
LINEAR = {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    ("change", "sources"),
    [
        (
            {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}},
            ["rope_theta is 10000", "rope_parameters.rope_theta is 500000"],
        ),
        (
            {"rope_scaling": LINEAR, "rope_parameters": {**LINEAR, "factor": 4.0}},
            ["rope_scaling.factor is 2", "rope_parameters.factor is 4"],
        ),
        (
            {"rope_scaling": LINEAR, "rope_parameters": {"rope_type": "default"}},
            ["rope_scaling.rope_type", "rope_parameters.rope_type"],
        ),
        (
            {"rope_scaling": {**LINEAR, "type": "yarn"}},
            ["type 'yarn'", "rope_type 'linear'"],
        ),
        (
            {
                "rope_theta": 7.0,
                "rope_parameters": {
                    "full_attention": {"rope_theta": 1e4},
                    "sliding_attention": {"rope_theta": 1e4},
                },
            },
            ["rope_theta is 7", "rope_parameters"],
        ),
        (
            {
                "rope_parameters": {
                    "rope_theta": 7.0,
                    "full_attention": {"rope_theta": 1e4},
                }
            },
            ["rope_parameters.rope_theta is 7", "layer types"],
        ),
    ],
)
def test_a_contradiction_names_both_sources(
    change: dict[str, Any], sources: list[str]
) -> None:
    with pytest.raises(ModelFileError) as caught:
        build_model({**BASE, **change})
    for source in sources:
        assert source in str(caught.value)


GEMMA3 = {
    "model_type": "gemma3_text",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
}
LONG = {"long_factor": [1.1] * 8, "short_factor": [1.0] * 8}
MROPE = {"mrope_section": [2, 1, 1], "rope_type": "default"}
PUBLISHED: dict[str, dict[str, Any]] = {
    "gemma3 with nothing but a scaling": {
        "model_type": "gemma3",
        "text_config": {**GEMMA3, "rope_scaling": {"factor": 8, "rope_type": "linear"}},
    },
    "phi3 with its first name of longrope": {
        **BASE,
        "model_type": "phi3",
        "rope_theta": 1e4,
        "rope_scaling": {**LONG, "type": "su"},
    },
    "phi3 in the newer spelling": {
        **BASE,
        "model_type": "phi3",
        "rope_parameters": {
            **LONG,
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "original_max_position_embeddings": 1024,
        },
    },
    "a whole number as factor": {
        **zoo_config("deepseek"),
        "rope_scaling": {"type": "linear", "factor": 4},
    },
    "qwen2_vl with both names of its kind": {
        **zoo_config("qwen2_vl"),
        "text_config": {
            **zoo_config("qwen2_vl")["text_config"],
            "rope_scaling": {**MROPE, "type": "mrope"},
        },
    },
    "llama with dynamic scaling": {
        **BASE,
        "rope_theta": 1e4,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    },
    "an own attention factor": {
        **zoo_config("olmo3"),
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 8.0,
            "attention_factor": 1.2,
            "original_max_position_embeddings": 512,
        },
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_configurations_as_they_are_published_are_built(name: str) -> None:
    build_model(PUBLISHED[name])


def test_agreeing_spellings_are_no_contradiction() -> None:
    both = {
        "rope_theta": 5e5,
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "rope_parameters": {**LINEAR, "rope_theta": 5e5},
    }
    module = build_model({**BASE, **both})
    assert module.layers[0].self_attn.rope.base == 5e5
    assert module.layers[0].self_attn.rope.scale == 0.5


def test_layers_that_the_definition_cannot_tell_apart_are_refused() -> None:
    parts = {
        "full_attention": {"rope_theta": 1e6},
        "sliding_attention": {"rope_theta": 1e4},
    }
    with pytest.raises(UnsupportedModelError, match="differ between full_attention"):
        build_model({**BASE, "rope_parameters": parts})


@pytest.mark.parametrize(
    ("arch", "scaling"),
    [
        ("qwen3_moe", {"rope_type": "yarn", "factor": 4.0}),
        ("gemma", {"rope_type": "linear", "factor": 4.0}),
        ("starcoder2", {"rope_type": "linear", "factor": 4.0}),
    ],
)
def test_a_scaling_that_nothing_reads_is_refused(
    arch: str, scaling: dict[str, Any]
) -> None:
    """mlx-lm's definitions of these families rotate without it, and say nothing."""
    config = zoo_config(arch)
    scaling = {**scaling, "original_max_position_embeddings": 512}
    with pytest.raises(UnsupportedModelError, match="scales positions"):
        build_model({**config, "rope_scaling": scaling})


@pytest.mark.parametrize(
    "settings",
    [
        [],
        "yarn",
        {"rope_theta": "x"},
        {"rope_theta": 0},
        {"rope_theta": [1]},
        {"rope_type": {}},
        {"rope_type": "linear", "factor": -1},
        {"rope_type": "linear"},
        {"full_attention": {"rope_theta": True}},
        {"full_attention": {"rope_type": 7}},
        {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": "x"},
    ],
)
def test_settings_that_are_none_are_refused(settings: Any) -> None:
    with pytest.raises(RvllmError):
        build_model({**BASE, "rope_parameters": settings})


def test_a_base_that_is_missing_is_transformers_default() -> None:
    config = {**zoo_config("cohere"), "rope_parameters": {"rope_type": "default"}}
    del config["rope_theta"]
    layer: nn.Module = build_model(config).layers[0]
    assert layer.self_attn.rope.base == 500_000.0
    check_config(normalised(config))


def test_settings_that_are_null_mean_their_default() -> None:
    scaling = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 512,
    }
    nulls = {"beta_fast": None, "beta_slow": None, "attention_factor": None}
    plain, with_nulls = (
        build_model(normalised({**tiny_config("llama"), "rope_scaling": settings}))
        for settings in (scaling, {**scaling, **nulls})
    )
    expected = np.array(plain.layers[0].self_attn.rope._freqs)
    found = np.array(with_nulls.layers[0].self_attn.rope._freqs)
    np.testing.assert_array_equal(found, expected)
