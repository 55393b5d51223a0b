"""One frozen configuration, merged as flag > environment > file > default.

The file is TOML, `config.toml` in the user's configuration folder or where RVLLM_CONFIG points; each key can also
be given as RVLLM_<KEY>.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rvllm_local.errors import ConfigError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True, slots=True)
class Config:
    """What shapes a run. Memory is in bytes; None means that the runtime chooses."""

    model: str = "smollm2-135m"
    kv_memory: int | None = None
    context_length: int | None = None
    max_rows: int = 16
    prefill_chunk: int = 512
    self_check: bool = True


def parse_bytes(value: int | str) -> int:
    """Bytes from a number, or from text such as "256MB" or "1.5 GiB". Raises `ConfigError`."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ConfigError(f"a size must be a number of bytes or text like 256MB, not {value!r}")
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(value))
    if found is None or found[2].upper() not in _UNITS:
        raise ConfigError(f"{value!r} is not a size; write it like 256MB or 2GiB")
    size = int(float(found[1]) * _UNITS[found[2].upper()])
    if size <= 0:
        raise ConfigError(f"a size must be positive, not {value!r}")
    return size


def load_config(flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> Config:
    """Merge the sources. Raises `ConfigError` that names the key, its value, where it came from and what is allowed."""
    environ = os.environ if environ is None else environ
    names = [field.name for field in fields(Config)]
    merged: dict[str, Any] = {}
    for key, value in _read_file(config_path(environ)).items():
        if key not in names:
            raise ConfigError(f"{config_path(environ)}: unknown key {key!r}; known are {', '.join(names)}")
        merged[key] = _convert(key, value, str(config_path(environ)))
    for name in names:
        if (text := environ.get(f"RVLLM_{name.upper()}")) is not None:
            merged[name] = _convert(name, text, f"environment variable RVLLM_{name.upper()}")
    for name, value in (flags or {}).items():
        if value is not None:
            merged[name] = _convert(name, value, f"--{name.replace('_', '-')}")
    return Config(**merged)


def config_path(environ: Mapping[str, str]) -> Path:
    """Where the configuration file is looked for."""
    if "RVLLM_CONFIG" in environ:
        return Path(environ["RVLLM_CONFIG"])
    import platformdirs

    return Path(platformdirs.user_config_dir("rvllm", appauthor=False), "config.toml")


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; mend or remove it") from error


def _convert(key: str, value: Any, source: str) -> Any:
    try:
        return _CONVERTERS[key](value)
    except (ValueError, ConfigError) as error:
        raise ConfigError(f"{source}: {key} cannot be {value!r}: {error}") from error


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("it must be text")
    return value


def _positive(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str) or int(value) < 1:
        raise ValueError("it must be a whole number of at least 1")
    return int(value)


def _switch(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if str(value).lower() in ("1", "true", "yes", "on"):
        return True
    if str(value).lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError("it must be true or false")


_CONVERTERS = {
    "model": _text,
    "kv_memory": parse_bytes,
    "context_length": _positive,
    "max_rows": _positive,
    "prefill_chunk": _positive,
    "self_check": _switch,
}
