"""One frozen configuration, merged as flag > environment > file > default.

The file is TOML, `config.toml` in the user's configuration folder or where RVLLM_CONFIG points; each key can also
be given as RVLLM_<KEY>.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from rvllm_local.errors import ConfigError

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}
_LARGEST = 2**63 - 1


def default_cache_dir() -> Path:
    """Where models and cached KV are kept unless something else is configured."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("rvllm", appauthor=False))


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What shapes a run. Memory is in bytes, lengths in tokens; None means that the runtime chooses.

    Models, and with `cache = "disk"` KV blocks too, are kept under `cache_dir`. `system_reserve` is what the plan leaves
    to the rest of the machine.
    """

    model: str = "smollm2-135m"
    kv_memory: int | None = None
    context_length: int | None = None
    max_rows: int = 16
    prefill_chunk: int = 512
    attention: Literal["auto", "reference", "kernels"] = "auto"
    self_check: bool = True
    deterministic: bool = False
    kv_dtype: Literal["auto", "int8"] = "auto"
    cache: Literal["off", "memory", "disk"] = "memory"
    disk_cache_bytes: int = 8 * 10**9
    max_waiting: int = 256
    step_target_ms: int | None = None
    system_reserve: int | None = None
    cache_dir: Path = field(default_factory=default_cache_dir)


def parse_bytes(value: int | str) -> int:
    """Bytes from a number, or from text such as "256MB" or "1.5 GiB". Raises `ConfigError`."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ConfigError(
            f"a size must be a number of bytes or text like 256MB, not {value!r}"
        )
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(value))
    if found is None or found[2].upper() not in _UNITS:
        raise ConfigError(f"{value!r} is not a size; write it like 256MB or 2GiB")
    size = Decimal(found[1]) * _UNITS[found[2].upper()]
    if not 1 <= size <= _LARGEST:
        raise ConfigError(
            f"a size must be from 1 byte to {_LARGEST} bytes, not {value!r}"
        )
    return int(size)


def load_config(
    flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> EngineConfig:
    """Merge the sources. Raises `ConfigError` that names the key, its value, where it came from and what is allowed."""
    environ = os.environ if environ is None else environ
    names = [known.name for known in fields(EngineConfig)]
    merged: dict[str, Any] = {}
    path = config_path(environ)
    for key, value in _read_file(path, must_exist="RVLLM_CONFIG" in environ).items():
        if key not in names:
            raise ConfigError(
                f"{path}: unknown key {key!r}, set to {value!r}; known are {', '.join(names)}"
            )
        merged[key] = _convert(key, value, str(path))
    for name in names:
        if (text := environ.get(f"RVLLM_{name.upper()}")) is not None:
            merged[name] = _convert(
                name, text, f"environment variable RVLLM_{name.upper()}"
            )
    for name, value in (flags or {}).items():
        if value is not None:
            merged[name] = _convert(name, value, f"--{name.replace('_', '-')}")
    return EngineConfig(**merged)


def config_path(environ: Mapping[str, str]) -> Path:
    """Where the configuration file is looked for."""
    if "RVLLM_CONFIG" in environ:
        return Path(environ["RVLLM_CONFIG"])
    import platformdirs

    return Path(platformdirs.user_config_dir("rvllm", appauthor=False), "config.toml")


def _read_file(path: Path, must_exist: bool) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if must_exist:
            raise ConfigError(
                f"RVLLM_CONFIG names {path}, which does not exist; create it or unset RVLLM_CONFIG"
            ) from error
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}; mend or remove it"
        ) from error


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
    text = str(value).strip()
    whole = (
        isinstance(value, int | str)
        and not isinstance(value, bool)
        and re.fullmatch(r"[0-9]{1,18}", text)
    )
    if not whole or int(text) < 1:
        raise ValueError("it must be a whole number of at least 1")
    return int(text)


def _switch(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if str(value).lower() in ("1", "true", "yes", "on"):
        return True
    if str(value).lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError("it must be true or false")


def _one_of(*allowed: str) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if value not in allowed:
            raise ValueError(f"it must be {', '.join(allowed[:-1])} or {allowed[-1]}")
        return str(value)

    return convert


def expanded(name: str) -> Path:
    """A path with the home of its user for `~`; `~nobody`, where there is no such user, stays as it is written."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def _folder(value: Any) -> Path:
    path = expanded(_text(value))
    if not path.is_absolute() or (path.exists() and not path.is_dir()):
        raise ValueError("it must be the absolute path of a folder")
    return path


_CONVERTERS = {
    "model": _text,
    "kv_memory": parse_bytes,
    "context_length": _positive,
    "max_rows": _positive,
    "prefill_chunk": _positive,
    "attention": _one_of("auto", "reference", "kernels"),
    "self_check": _switch,
    "deterministic": _switch,
    "kv_dtype": _one_of("auto", "int8"),
    "cache": _one_of("off", "memory", "disk"),
    "disk_cache_bytes": parse_bytes,
    "max_waiting": _positive,
    "step_target_ms": _positive,
    "system_reserve": parse_bytes,
    "cache_dir": _folder,
}
