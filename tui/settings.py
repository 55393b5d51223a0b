"""What a person sets for the chat in chat.toml, beside config.toml."""

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


PRESET_TEXTS = ("system", "model")  # what a preset has beside parameters
NOTIFY_KINDS = ("bell", "osc9", "osc777")
_KINDS: Mapping[str, type] = {
    "endpoint": str,
    "port": int,
    "theme": str,
    "notify": str,
    "keys": dict,
    "presets": dict,
}
_KNOWN = "endpoint, port, theme, notify, [keys], [presets.NAME]"


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """The file's values.

    `presets` map a name to sampling parameters and, under "system" and "model", to
    text. `notify` is how the end of a long reply is told; None tells nothing. `port` is
    where the server of all chats listens.
    """

    endpoint: str | None = None
    theme: str | None = None
    keys: Mapping[str, str] = field(default_factory=dict)
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notify: str | None = None
    port: int | None = None


def settings_path(environ: Mapping[str, str]) -> Path:
    """Where chat.toml is looked for."""
    return config_path(environ).with_name("chat.toml")


def load_settings(environ: Mapping[str, str] | None = None) -> ChatSettings:
    """Read chat.toml; a missing file means the defaults.

    Raises `ConfigError` that names the key and its value.
    """
    path = settings_path(os.environ if environ is None else environ)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ChatSettings()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        reason = f"{path} cannot be read: {error}; mend or remove it"
        raise ConfigError(reason) from error
    for name, value in values.items():
        kind = _KINDS.get(name)
        if kind is None or type(value) is not kind:
            raise ConfigError(
                f"{path}: {name} = {value!r} is not known; known are {_KNOWN}"
            )
    _check_values(path, values)
    presets = {}
    for name, preset in values.get("presets", {}).items():
        presets[name] = _preset(path, name, preset)
    return ChatSettings(
        values.get("endpoint"),
        values.get("theme"),
        values.get("keys", {}),
        presets,
        values.get("notify"),
        values.get("port"),
    )


def _check_values(path: Path, values: Mapping[str, Any]) -> None:
    """What is of the right type can still be wrong. Raises `ConfigError`."""
    for name, value in values.get("keys", {}).items():
        if not isinstance(value, str):
            raise ConfigError(f"{path}: [keys] {name} must be text, not {value!r}")
    notify = values.get("notify")
    if notify is not None and notify not in NOTIFY_KINDS:
        kinds = ", ".join(NOTIFY_KINDS)
        raise ConfigError(f"{path}: notify = {notify!r} is none of {kinds}")
    port = values.get("port")
    if port is not None and not 0 < port < 65536:
        raise ConfigError(f"{path}: port = {port!r} must be from 1 to 65535")


def _preset(
    path: Path,
    name: str,
    values: Any,
) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: preset {name!r} must be a table, not {values!r}")
    preset: dict[str, Any] = {}
    for key, value in values.items():
        if key in PRESET_TEXTS:
            if not isinstance(value, str):
                raise ConfigError(
                    f"{path}: preset {name!r}: {key} must be text, not {value!r}"
                )
            if value:
                preset[key] = value
            continue
        try:
            preset[key] = parse_parameter(key, str(value))
        except ParameterError as error:
            raise ConfigError(f"{path}: preset {name!r}: {error}") from error
    return preset


def parse_parameter(name: str, text: str) -> int | float | None:
    """A sampling parameter from what was typed; empty or "default" means None.

    Raises `ParameterError`.
    """
    kind = PARAMETERS.get(name)
    if kind is None:
        names = ", ".join(PARAMETERS)
        raise ParameterError(name, f"there is no parameter {name!r}; known are {names}")
    typed = text.strip()
    if typed.lower() in ("", "default", "none"):
        return None
    value: int | float
    try:
        value = kind(typed)
    except ValueError as error:
        noun = "a whole number" if kind is int else "a number"
        reason = f"{name} must be {noun}, not {typed!r}"
        raise ParameterError(name, reason) from error
    checked: dict[str, Any] = {name: value}
    SamplingParams(**checked)
    return value
