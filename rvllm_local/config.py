"""One frozen configuration, merged as flag > environment > file > default.

The file is TOML: `config.toml` in the user's configuration folder, or where
RVLLM_CONFIG points. Each key can also be given as RVLLM_<KEY>. The keys are "model"
and those of `options.EngineOptions`.
"""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from rvllm_local.errors import ConfigError
from rvllm_local.options import EngineOptions, option_table

DEFAULT_MODEL = "smollm2-135m"
_MODEL = "model"


class Config(msgspec.Struct, frozen=True):
    """What a run is made of: a model by name or path, and the options of its engine."""

    model: str
    options: EngineOptions
    names_model: bool = True  # False where nobody chose and `model` is the small one

    @property
    def cache_dir(self) -> Path:
        """Where models are kept, and KV blocks too if the cache is on disk."""
        return Path(self.options.cache_dir or default_cache_dir())


def default_cache_dir() -> Path:
    """Where models and cached KV are kept unless something else is configured."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("rvllm", appauthor=False))


def load_config(
    flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> Config:
    """Merge the sources; a flag of None was not given.

    Raises `ConfigError` that names the key, its value, where it came from and what is
    allowed.
    """
    environ = os.environ if environ is None else environ
    merged = _from_file(environ)
    merged |= _from_environment(environ)
    for name, value in (flags or {}).items():
        if value is not None:
            merged[name] = _convert(name, value, f"--{name.replace('_', '-')}")
    names_model = _MODEL in merged
    model = merged.pop(_MODEL, DEFAULT_MODEL)
    merged.setdefault("cache_dir", str(default_cache_dir()))
    return Config(model, EngineOptions(**merged), names_model)


def config_path(environ: Mapping[str, str]) -> Path:
    """Where the configuration file is looked for."""
    if "RVLLM_CONFIG" in environ:
        return Path(environ["RVLLM_CONFIG"])
    import platformdirs

    return Path(platformdirs.user_config_dir("rvllm", appauthor=False), "config.toml")


def show_progress(message: str) -> None:
    """Say on standard error how far something is, beside the output."""
    sys.stderr.write(f"rvllm: {message}\n")
    sys.stderr.flush()


def _names() -> list[str]:
    return [_MODEL, *option_table()]


def _from_file(environ: Mapping[str, str]) -> dict[str, Any]:
    path = config_path(environ)
    values = {}
    for key, value in _read_file(path, must_exist="RVLLM_CONFIG" in environ).items():
        if key not in _names():
            raise ConfigError(
                f"{path}: unknown key {key!r}, set to {value!r}; "
                f"known are {', '.join(_names())}"
            )
        values[key] = _convert(key, value, str(path))
    return values


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    values = {}
    for name in _names():
        variable = f"RVLLM_{name.upper()}"
        if variable in environ:
            source = f"environment variable {variable}"
            values[name] = _convert(name, environ[variable], source)
    return values


def _read_file(path: Path, must_exist: bool) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if must_exist:
            raise ConfigError(
                f"RVLLM_CONFIG names {path}, which does not exist; "
                "create it or unset RVLLM_CONFIG"
            ) from error
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}; mend or remove it"
        ) from error


def _convert(name: str, value: Any, source: str) -> Any:
    try:
        if name != _MODEL:
            return option_table()[name].convert(value)
        if not isinstance(value, str) or not value:
            raise ConfigError("it must be text")
        return value
    except ConfigError as error:
        raise ConfigError(f"{source}: {name} cannot be {value!r}: {error}") from error
