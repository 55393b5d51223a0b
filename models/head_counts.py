"""How many heads a model's configuration states, under the names that families use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rvllm_local.models.config_file import text_config

_HEADS = ("num_attention_heads", "num_heads", "n_heads", "n_head", "num_query_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")


def stated_size(config: Mapping[str, Any], key: str) -> int | None:
    """A size of the configuration, or of its text part; None where none is given.

    Where layers differ it is the largest.
    """
    for part in (config, text_config(config)):
        value = part.get(key)
        if isinstance(value, list):
            sizes = [size for size in value if isinstance(size, int)]
            value = max(sizes, default=0)
        if isinstance(value, int) and value > 0:
            return value
    return None


def stated_heads(config: Mapping[str, Any]) -> int | None:
    """The most query heads that a layer has; None where the configuration is silent."""
    return _first_stated(config, _HEADS)


def kv_heads(config: Mapping[str, Any]) -> int | None:
    """The most heads of keys and values; None for those of the queries, or none stated.

    Latent attention keeps one row a token for all heads, and divides the queries alone.
    """
    if stated_size(config, "kv_lora_rank"):
        return None
    return _first_stated(config, _KV_HEADS)


def _first_stated(config: Mapping[str, Any], names: Sequence[str]) -> int | None:
    for name in names:
        heads = stated_size(config, name)
        if heads:
            return heads
    return None
