"""Whether a model's head is its embedding, where its configuration does not say so.

A definition takes what the first models of its family had, which is not what transformers
takes; with an embedding for a head, another head in the files would be dropped unseen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rvllm_local.models.config_file import text_config

TIED = "tie_word_embeddings"
# Families whose head is the embedding, in their definitions as well.
_ALWAYS_TIED = frozenset(
    (
        "cohere",
        "cohere2",
        "gemma",
        "gemma2",
        "gemma3",
        "gemma3_text",
        "gemma3n",
        "gemma4",
        "gemma4_text",
        "gpt2",
        "gpt_bigcode",
        "lfm2",
        "lfm2_moe",
        "recurrent_gemma",
    )
)
# What transformers takes where a configuration is silent: an embedding for a head, or,
# where definitions say otherwise or insist on the switch, a head of its own.
_TIED_BY_DEFAULT = _ALWAYS_TIED | {
    "ernie4_5",
    "ernie4_5_moe",
    "mamba",
    "minicpm3",
    "mistral3",
    "smollm3",
    "starcoder2",
}
_OWN_BY_DEFAULT = frozenset(
    (
        "apertus",
        "bitnet",
        "exaone4",
        "falcon_h1",
        "glm",
        "glm4_moe",
        "granite",
        "granitemoe",
        "granitemoehybrid",
        "helium",
        "jamba",
        "llama",
        "llama4_text",
        "mamba2",
        "mellum",
        "ministral3",
        "mistral",
        "olmo2",
        "olmo_hybrid",
        "olmoe",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "seed_oss",
        "solar_open",
    )
)
_HEAD = "lm_head.weight"
_LLAMA4_HEAD = "output.weight"


def put_tied(fields: dict[str, Any], model_type: str) -> None:
    """Say what transformers takes where the fields are silent, in place."""
    if fields.get(TIED) is not None:
        return
    if model_type in _TIED_BY_DEFAULT:
        fields[TIED] = True
    elif model_type in _OWN_BY_DEFAULT:
        fields[TIED] = False


def with_head_of(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The configuration, with what its weights' names say of the head if it is silent.

    Writers leave the switch out; the files of those that have a head hold it.
    """
    told = dict(config)
    is_stated = config.get(TIED) is not None
    is_stated = is_stated or text_config(config).get(TIED) is not None
    if is_stated or config.get("model_type") in _ALWAYS_TIED:
        return told
    has_head = any(name.endswith(_HEAD) or name == _LLAMA4_HEAD for name in names)
    told[TIED] = not has_head
    return told
