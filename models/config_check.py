"""Refuses a configuration that could describe no model, before anything is built.

Knows the keys that most families share, and what their values may be. What only one
family has is left to its definition.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from rvllm_local.errors import ModelFileError

_NEEDED = {
    "num_hidden_layers": 1024,
    "vocab_size": 2**24,
    "hidden_size": 2**18,
    "num_attention_heads": 4096,
}
# Some families have a list of these, one for each layer.
_BY_LAYER = {
    "num_key_value_heads": 4096,
    "head_dim": 2**14,
}
_POSITIVE = (
    "rope_theta",
    "rms_norm_eps",
    "layer_norm_eps",
    "norm_eps",
    "layer_norm_epsilon",
)
_SWITCHES = (
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "rope_traditional",
    "use_cache",
)
# What a definition makes one by one, under the names that families have for it. They may
# stand in any part of a configuration.
_MADE_ONE_BY_ONE = {
    **dict.fromkeys(
        (
            "num_hidden_layers",
            "num_layers",
            "n_layers",
            "n_layer",
            "num_transformer_layers",
        ),
        1024,
    ),
    **dict.fromkeys(("num_loops", "num_kv_reuse_layers", "altup_num_inputs"), 1024),
    **dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
        2**16,
    ),
    **dict.fromkeys(
        (
            "layer_types",
            "layers_block_type",
            "hybrid_override_pattern",
            "block_configs",
        ),
        1024,
    ),
}
# Kinds that are named beyond the layers, as for further layers that predict.
_MOST_SPARE_LAYERS = 64
_MOST_VALUES = 1_000_000


def check_config(config: Mapping[str, Any]) -> None:
    """Raise `ModelFileError` for a value that could not be meant.

    The error names the key and its value.
    """
    _check_numbers(config)
    _check_sizes(config)
    _check_shared(config)
    text = config.get("text_config")
    if isinstance(text, Mapping):
        _check_shared(text)


def _check_shared(config: Mapping[str, Any]) -> None:
    for key, largest in _NEEDED.items():
        value = config.get(key)
        if value is not None and not _is_count(value, largest):
            raise ModelFileError(
                f"the config's {key} must be an integer from 1 to {largest}, not "
                f"{value!r:.80}"
            )
    for key, largest in _BY_LAYER.items():
        for value in _each(config.get(key)):
            if value is not None and not _is_count(value, largest):
                raise ModelFileError(
                    f"the config's {key} must be an integer from 1 to {largest}, not "
                    f"{value!r:.80}"
                )
    for key in _POSITIVE:
        for value in _each(config.get(key)):
            if value is not None and not _is_positive(value):
                raise ModelFileError(
                    f"the config's {key} must be a positive number, not {value!r:.80}"
                )
    for key in _SWITCHES:
        if not isinstance(config.get(key), bool | None):
            raise ModelFileError(
                f"the config's {key} must be true or false, not {config[key]!r:.80}"
            )
    _check_window(config.get("sliding_window"))
    _check_rotation("rope_scaling", config.get("rope_scaling"))
    _check_rotation("rope_parameters", config.get("rope_parameters"))
    _check_layer_types(config)
    _check_shared_heads(config)
    check_end(config.get("eos_token_id"), "the config")


def _each(value: Any) -> list[Any]:
    if isinstance(value, list) and value:
        return value
    return [value]


def _is_count(value: Any, largest: int) -> bool:
    return type(value) is int and 0 < value <= largest


def _is_positive(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 < value < math.inf


def _check_window(value: Any) -> None:
    for window in _each(value):
        if window is not None and (type(window) is not int or window < 0):
            raise ModelFileError(
                "the config's sliding_window must be a number of tokens, not "
                f"{window!r:.80}"
            )


def _check_rotation(name: str, settings: Any) -> None:
    """Check an object of rotation settings, or one for each type of layer."""
    if settings is None:
        return
    if not isinstance(settings, Mapping):
        # Some families have a number under `rope_scaling`, which is theirs.
        if name == "rope_scaling" and isinstance(settings, int | float):
            return
        raise ModelFileError(
            f"the config's {name} must be an object, not {settings!r:.80}"
        )
    for key in ("type", "rope_type"):
        if not isinstance(settings.get(key), str | None):
            raise ModelFileError(
                f"the config's {name} has {key} {settings[key]!r:.80}, which must be "
                "a name"
            )
    for key in ("factor", "rope_theta", "original_max_position_embeddings"):
        value = settings.get(key)
        if value is not None and not _is_positive(value):
            raise ModelFileError(
                f"the config's {name} has {key} {value!r:.80}, which must be a "
                "positive number"
            )
    for key, value in settings.items():
        if isinstance(value, Mapping) and name == "rope_parameters":
            _check_rotation(f"{name}.{key}", value)


def _check_layer_types(config: Mapping[str, Any]) -> None:
    kinds = config.get("layer_types")
    layers = config.get("num_hidden_layers")
    if not isinstance(kinds, list) or type(layers) is not int:
        return
    if not layers <= len(kinds) <= layers + _MOST_SPARE_LAYERS:
        raise ModelFileError(
            f"the config's layer_types has {len(kinds)} entries, and the model has "
            f"{layers} layers"
        )


def _check_shared_heads(config: Mapping[str, Any]) -> None:
    heads = config.get("num_attention_heads")
    shared = config.get("num_key_value_heads")
    if type(heads) is int and type(shared) is int and heads % shared:
        raise ModelFileError(
            f"the config's num_attention_heads is {heads} and its num_key_value_heads "
            f"is {shared}, which does not divide it"
        )


def check_end(value: Any, source: str) -> None:
    """Raise `ModelFileError` for what is no token id, no list of them and not nothing."""
    most = _NEEDED["vocab_size"]
    if value == []:
        return
    for token in _each(value):
        if token is None:
            continue
        if type(token) is not int or not -1 <= token < most:
            raise ModelFileError(
                f"{source}: eos_token_id must be a token id or a list of them, not "
                f"{token!r:.80}"
            )


def _check_numbers(config: Mapping[str, Any]) -> None:
    """Raise for NaN, which Python reads though JSON has none.

    Infinity is in use, as the end of a range.
    """
    for count, (key, value) in enumerate(_values(config)):
        if count > _MOST_VALUES:
            raise ModelFileError(
                f"the config holds more than {_MOST_VALUES} values, which is not "
                "plausible"
            )
        if isinstance(value, float) and math.isnan(value):
            raise ModelFileError(
                f"the config's {key!r:.80} holds NaN, which is no number"
            )


def _check_sizes(config: Mapping[str, Any]) -> None:
    """Refuse what would be built for hours, before the first part of it is."""
    waiting: list[Any] = [config]
    while waiting:
        part = waiting.pop()
        members = part
        if isinstance(part, Mapping):
            members = part.values()
            for key, largest in _MADE_ONE_BY_ONE.items():
                _check_size(key, part.get(key), largest)
        for member in members:
            if isinstance(member, Mapping | list):
                waiting.append(member)


def _check_size(key: str, value: Any, largest: int) -> None:
    size = value
    if isinstance(value, str | list):
        size = len(value)
    if type(size) is int and size > largest:
        raise ModelFileError(
            f"the config's {key} is {value!r:.60}, and no model has more than {largest} "
            "of them"
        )


def _values(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every value that is not a container, under its key at the top."""
    waiting = list(config.items())
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [(key, part) for part in value.values()]
        elif isinstance(value, list):
            waiting += [(key, part) for part in value]
        else:
            yield key, value
