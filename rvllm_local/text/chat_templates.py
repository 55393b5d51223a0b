"""Where a model's chat templates are: files, settings, and the keys of a GGUF file.

A model may have several by name; `default` renders conversations, `tool_use` those with
tools.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rvllm_local.errors import ModelFileError
from rvllm_local.text.settings_files import read_settings_file

_DEFAULT = "default"
_TOOL_USE = "tool_use"
_GGUF_KEY = "tokenizer.chat_template"


@dataclass(frozen=True, slots=True)
class ChatTemplates:
    """A model's templates as Jinja source, and where they were found."""

    default: str | None = None
    tool_use: str | None = None
    source: str = "none"


def templates_of_folder(folder: Path, config: Mapping[str, Any]) -> ChatTemplates:
    """The templates of a model folder; `config` is its tokenizer_config.json.

    Files count before settings. Raises `ModelFileError` for a template that is no text,
    and for several of which none is the default.
    """
    separate = folder / "chat_template.jinja"
    additional = folder / "additional_chat_templates"
    named: dict[str, str] = {}
    if additional.is_dir():
        for path in sorted(additional.glob("*.jinja")):
            named[path.stem] = _read(path)
    source = additional
    if separate.is_file():
        named[_DEFAULT] = _read(separate)
        source = separate
    value = config.get("chat_template")
    if named and _DEFAULT not in named and isinstance(value, str):
        named[_DEFAULT] = value
    if named:
        return _by_name(named, str(source))
    if value is not None:
        return _from_value(value, folder / "tokenizer_config.json")
    legacy = folder / "chat_template.json"
    value = read_settings_file(legacy).get("chat_template")
    if value is None:
        return ChatTemplates()
    return _from_value(value, legacy)


def templates_of_gguf(metadata: Mapping[str, Any], path: Path) -> ChatTemplates:
    """The templates in a GGUF file's keys: `tokenizer.chat_template`, and named ones."""
    named = {}
    prefix = f"{_GGUF_KEY}."
    for key, value in metadata.items():
        if not isinstance(value, str):
            continue
        if key == _GGUF_KEY:
            named[_DEFAULT] = value
        elif key.startswith(prefix):
            named[key.removeprefix(prefix)] = value
    if not named:
        return ChatTemplates()
    return _by_name(named, str(path))


def _from_value(value: Any, path: Path) -> ChatTemplates:
    """Templates as settings hold them: one text, or a list of named ones."""
    if isinstance(value, str):
        return ChatTemplates(value, None, str(path))
    if isinstance(value, Mapping):
        rows = []
        for name, template in value.items():
            rows.append({"name": name, "template": template})
        value = rows
    if not isinstance(value, list):
        raise ModelFileError(f"{path}: chat_template must be text, not {value!r:.60}")
    named = {}
    for row in value:
        if not isinstance(row, Mapping):
            continue
        name = row.get("name")
        template = row.get("template")
        if isinstance(name, str) and isinstance(template, str):
            named[name] = template
    return _by_name(named, str(path))


def _by_name(named: Mapping[str, str], source: str) -> ChatTemplates:
    if _DEFAULT not in named:
        shown = ", ".join(sorted(named)) or "none that can be read"
        raise ModelFileError(
            f"{source} has no default chat template; its templates are {shown[:200]}. "
            f"Write the one to use to chat_template.jinja in the model's folder"
        )
    return ChatTemplates(named[_DEFAULT], named.get(_TOOL_USE), source)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{path} cannot be read: {error}") from error
