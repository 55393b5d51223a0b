"""Special tokens by name, as a folder's settings give them: bos, eos, pad and others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rvllm_local.text.settings_files import read_settings_file

_SUFFIX = "_token"
_LISTS = ("additional_special_tokens", "extra_special_tokens")


def named_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Texts by name, such as `pad_token`; `config` is tokenizer_config.json.

    special_tokens_map.json says what the configuration leaves out.
    """
    names: dict[str, str] = {}
    for settings in (read_settings_file(folder / "special_tokens_map.json"), config):
        extra = settings.get("extra_special_tokens")
        rows = {**(extra if isinstance(extra, Mapping) else {}), **settings}
        for name, value in rows.items():
            text = token_text(value)
            if isinstance(name, str) and name.endswith(_SUFFIX) and text:
                names[name] = text
    return names


def special_texts(folder: Path, config: Mapping[str, Any]) -> set[str]:
    """All texts that the settings call special, whatever the vocabulary says of them."""
    texts = set(named_tokens(folder, config).values())
    for settings in (read_settings_file(folder / "special_tokens_map.json"), config):
        for name in _LISTS:
            value = settings.get(name)
            items = value.values() if isinstance(value, Mapping) else value
            if isinstance(items, str) or items is None:
                continue
            for item in items if hasattr(items, "__iter__") else ():
                text = token_text(item)
                if text:
                    texts.add(text)
    return texts


def token_text(value: Any) -> str | None:
    """A token's text, written plainly or as an object with a content."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None
