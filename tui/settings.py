"""What a person sets for the chat in chat.toml, beside config.toml: endpoint, theme, keys and presets."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rvllm_local.config import config_path
from rvllm_local.errors import ConfigError, ParameterError
from rvllm_local.types import SamplingParams

# Sampling parameters that a chat can set, with the type of each.
PARAMETERS: Mapping[str, type] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "max_tokens": int,
    "seed": int,
    "presence_penalty": float,
    "frequency_penalty": float,
    "repetition_penalty": float,
}


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """The file's values. `presets` map a name to sampling parameters and, under "system", a system prompt."""

    endpoint: str | None = None
    theme: str | None = None
    keys: Mapping[str, str] = field(default_factory=dict)
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def settings_path(environ: Mapping[str, str]) -> Path:
    """Where chat.toml is looked for."""
    return config_path(environ).with_name("chat.toml")


def load_settings(environ: Mapping[str, str] | None = None) -> ChatSettings:
    """Read chat.toml; a missing file means the defaults. Raises `ConfigError` that names the key and its value."""
    path = settings_path(os.environ if environ is None else environ)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ChatSettings()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}; mend or remove it"
        ) from error
    for name, value in values.items():
        kind = {"endpoint": str, "theme": str, "keys": dict, "presets": dict}.get(name)
        if kind is None or not isinstance(value, kind):
            raise ConfigError(
                f"{path}: {name} = {value!r} is not known; known are endpoint, theme, [keys], [presets.NAME]"
            )
    for name, value in values.get("keys", {}).items():
        if not isinstance(value, str):
            raise ConfigError(f"{path}: [keys] {name} must be text, not {value!r}")
    presets = {
        name: _preset(path, name, value)
        for name, value in values.get("presets", {}).items()
    }
    return ChatSettings(
        values.get("endpoint"), values.get("theme"), values.get("keys", {}), presets
    )


def _preset(path: Path, name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: preset {name!r} must be a table, not {value!r}")
    system = value.get("system", "")
    if not isinstance(system, str):
        raise ConfigError(
            f"{path}: preset {name!r}: system must be text, not {system!r}"
        )
    try:
        params = {
            key: parse_parameter(key, str(one))
            for key, one in value.items()
            if key != "system"
        }
    except ParameterError as error:
        raise ConfigError(f"{path}: preset {name!r}: {error}") from error
    return {**params, **({"system": system} if system else {})}


def parse_parameter(name: str, text: str) -> int | float | None:
    """A sampling parameter from what was typed; empty or "default" means None. Raises `ParameterError`."""
    if name not in PARAMETERS:
        raise ParameterError(
            name, f"there is no parameter {name!r}; known are {', '.join(PARAMETERS)}"
        )
    if text.strip().lower() in ("", "default", "none"):
        return None
    try:
        value = PARAMETERS[name](text.strip())
    except ValueError as error:
        kind = "a whole number" if PARAMETERS[name] is int else "a number"
        raise ParameterError(
            name, f"{name} must be {kind}, not {text.strip()!r}"
        ) from error
    SamplingParams(**{name: value})
    return value  # type: ignore[no-any-return]
