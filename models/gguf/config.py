"""A GGUF file's keys as the configuration that mlx-lm's model definitions take.

Every key is checked before it is used; what the definitions cannot serve as the file means it is refused by name.
"""

from __future__ import annotations

from typing import Any

from rvllm_local.errors import ModelFileError, UnsupportedModelError
from rvllm_local.models.gguf.architectures import Architecture, architecture_of
from rvllm_local.models.gguf.family_keys import family_config
from rvllm_local.models.gguf.keys import Keys
from rvllm_local.models.gguf.reader import GGUFFile
from rvllm_local.models.gguf.rotation import rotation_settings
from rvllm_local.models.gguf.weights import num_layers

_ENDS = (
    "eos_token_id",
    "eot_token_id",
    "eom_token_id",
    "fim_pad_token_id",
    "fim_rep_token_id",
    "fim_sep_token_id",
    "eos_token_ids",
    "eog_token_ids",
)
# Definitions that rotate a part of each head.
_PARTLY_ROTATED = frozenset({"phi3", "glm4", "glm4_moe", "qwen3_5", "qwen3_5_moe"})
_NO_TOKEN = (-1, 0xFFFFFFFF)  # how files say that there is none


def gguf_config(file: GGUFFile) -> dict[str, Any]:
    """The configuration, as config.json would have it. Raises for other architectures and missing keys."""
    architecture = architecture_of(file)
    keys = Keys(file)
    if not architecture.has_experts:
        keys.refuse_experts()
    keys.refuse_what_is_not_computed(architecture.scales)
    heads, hidden = (
        keys.integer("attention.head_count"),
        keys.integer("embedding_length"),
    )
    if hidden % heads and keys.get("attention.key_length") is None:
        raise ModelFileError(
            f"{file.path}: {heads} heads do not divide a width of {hidden}"
        )
    read = keys.largest if architecture.layers_differ else keys.integer
    config = {
        "model_type": architecture.model_type,
        "hidden_size": hidden,
        "num_hidden_layers": num_layers(file),
        "intermediate_size": read("feed_forward_length", _ffn_width(file)),
        "num_attention_heads": heads,
        "num_key_value_heads": read("attention.head_count_kv", heads),
        "head_dim": keys.integer("attention.key_length", hidden // heads),
        "rms_norm_eps": keys.positive(_epsilon_key(architecture)),
        "vocab_size": _vocabulary(file),
        "rope_theta": keys.positive("rope.freq_base", 10000.0),
        "max_position_embeddings": keys.integer("context_length"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "eos_token_id": _end_tokens(file),
    }
    if not architecture.has_latents:
        _check_heads(file, config)
    config |= rotation_settings(keys, config)
    _check_output(file, architecture)
    return family_config(keys, config)


def _epsilon_key(architecture: Architecture) -> str:
    if architecture.has_layer_norms:
        return "attention.layer_norm_epsilon"
    return "attention.layer_norm_rms_epsilon"


def _check_output(file: GGUFFile, architecture: Architecture) -> None:
    if architecture.always_tied and "output.weight" in file.tensors:
        raise UnsupportedModelError(
            f"{file.path}: a {architecture.model_type} model with an output matrix of its own"
        )


def _check_heads(file: GGUFFile, config: dict[str, Any]) -> None:
    heads, kv_heads, head_dim = (
        config[key]
        for key in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    if heads % kv_heads or head_dim % 2:
        raise ModelFileError(
            f"{file.path}: {heads} heads of {head_dim} cannot share {kv_heads} key heads"
        )
    keys = Keys(file)
    value_dim = keys.integer("attention.value_length", head_dim)
    rotated = keys.integer("rope.dimension_count", head_dim)
    if value_dim != head_dim:
        raise UnsupportedModelError(
            f"{file.path}: values of {value_dim} beside keys of {head_dim} are not supported"
        )
    if rotated > head_dim or rotated % 2:
        raise ModelFileError(
            f"{file.path}: RoPE over {rotated} of {head_dim} dimensions is not possible"
        )
    if rotated != head_dim and config["model_type"] not in _PARTLY_ROTATED:
        raise UnsupportedModelError(
            f"{file.path}: RoPE over {rotated} of {head_dim} dimensions is not supported"
        )


def _ffn_width(file: GGUFFile) -> int | None:
    """The width of the first layer's MLP by its tensor, for files that do not say it."""
    for name in ("blk.0.ffn_down.weight", "blk.0.ffn_down_exps.weight"):
        if name in file.tensors:
            return file.tensors[name].shape[-1]
    return None


def _vocabulary(file: GGUFFile) -> int:
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise ModelFileError(
            f"{file.path}: key 'tokenizer.ggml.tokens' is not a list of tokens"
        )
    return len(tokens)


def _end_tokens(file: GGUFFile) -> list[int]:
    """The ids that end an answer: of the text, and of a turn where the file names one.

    A key may have several. Raises `ModelFileError` for an end that is no token.
    """
    rows = _vocabulary(file)
    ends: dict[int, None] = {}
    for name in _ENDS:
        key = f"tokenizer.ggml.{name}"
        value = file.metadata.get(key)
        for token in value if isinstance(value, list) else [value]:
            if isinstance(token, bool) or not isinstance(token, int):
                continue
            if token in _NO_TOKEN:
                continue
            if not 0 <= token < rows:
                raise ModelFileError(
                    f"{file.path}: key {key!r} is {token}, which is no token: "
                    f"'tokenizer.ggml.tokens' has {rows}"
                )
            ends[token] = None
    return list(ends)
