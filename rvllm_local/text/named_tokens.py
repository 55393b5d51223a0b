"""Special tokens by name, as a folder's settings give them: bos, eos, pad and others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rvllm_local.text.settings_files import read_settings_file

_SUFFIX = "_token"
_LISTS = (
    "additional_special_tokens",
    "extra_special_tokens",
)


Settings = Mapping[str, Any]


def named_tokens(
    folder: Path,
    config: Settings,
) -> dict[str, str]:
    """Texts by name, such as `pad_token`; `config` is tokenizer_config.json.

    special_tokens_map.json says what the configuration leaves out.
    """
    names: dict[str, str] = {}
    for settings in _sources(folder, config):
        rows: dict[Any, Any] = {}
        extra = settings.get("extra_special_tokens")
        if isinstance(extra, Mapping):
            rows.update(extra)
        rows.update(settings)
        for name, value in rows.items():
            is_token = isinstance(name, str) and name.endswith(_SUFFIX)
            text = token_text(value)
            if is_token and text:
                names[name] = text
    return names


def special_texts(folder: Path, config: Settings) -> set[str]:
    """All texts that the settings call special, whatever the vocabulary says of them."""
    names = named_tokens(folder, config)
    texts = set(names.values())
    for settings in _sources(folder, config):
        for name in _LISTS:
            items = _items(settings.get(name))
            for item in items:
                text = token_text(item)
                if text:
                    texts.add(text)
    return texts


def _sources(folder: Path, config: Settings) -> list[Settings]:
    """The settings that name tokens; the later count before the earlier."""
    special = read_settings_file(folder / "special_tokens_map.json")
    return [special, config]


def _items(value: Any) -> Iterable[Any]:
    """The members of a list or an object; none of anything else."""
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, str):
        return ()
    if isinstance(value, Iterable):
        return value
    return ()


def token_text(value: Any) -> str | None:
    """A token's text, written plainly or as an object with a content."""
    if isinstance(value, Mapping):
        value = value.get("content")
    if isinstance(value, str):
        return value
    return None
