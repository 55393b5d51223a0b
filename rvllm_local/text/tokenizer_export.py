"""The files that describe a model's tokenizer in a folder, whatever format it came in.

A folder keeps its own files; the keys of a GGUF file are written as tokenizer.json or tokenizer.model.
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import processors

from rvllm_local.models.locate import ModelFiles
from rvllm_local.text.sentencepiece import SentencePieceBackend
from rvllm_local.text.tokenizer import Tokenizer

_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "tekken.json",
    "tiktoken.model",
    "qwen.tiktoken",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
)
_FROM_GENERATION = "generation_config.json"
_SETTINGS = "tokenizer_config.json"


def tokenizer_folder_files(files: ModelFiles, tokenizer: Tokenizer) -> dict[str, bytes]:
    """Contents by file name.

    From them `read_tokenizer` makes the same tokenizer again.
    """
    contents: dict[str, bytes] = {}
    if files.kind != "gguf":
        for name in (*_FILES, _FROM_GENERATION):
            path = files.path / name
            if path.is_file():
                contents[name] = path.read_bytes()
        if (files.path / "additional_chat_templates").is_dir():
            _put_templates_into_settings(contents, tokenizer)
        return contents
    backend = tokenizer.backend
    settings: dict[str, Any] = {
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "add_bos_token": tokenizer.adds_bos,
        "chat_template": _template_setting(tokenizer),
    }
    stated = {name: value for name, value in settings.items() if value is not None}
    contents[_SETTINGS] = _json(stated)
    if isinstance(backend, SentencePieceBackend):
        contents["tokenizer.model"] = backend.to_bytes()
    else:
        with_start = _with_start(backend, tokenizer)
        contents["tokenizer.json"] = with_start.to_str().encode()
    return contents


def _put_templates_into_settings(
    contents: dict[str, bytes], tokenizer: Tokenizer
) -> None:
    """Keep templates that lie in a folder of their own: what is written has no folders."""
    settings = json.loads(contents.get(_SETTINGS, b"{}"))
    settings["chat_template"] = _template_setting(tokenizer)
    contents[_SETTINGS] = _json(settings)
    contents.pop("chat_template.jinja", None)


def _template_setting(tokenizer: Tokenizer) -> Any:
    """The templates as settings hold them: one text, or a list of named ones."""
    templates = tokenizer.templates
    if templates.tool_use is None:
        return templates.default
    named = {"default": templates.default, "tool_use": templates.tool_use}
    return [{"name": name, "template": text} for name, text in named.items()]


def _with_start(backend: Backend, tokenizer: Tokenizer) -> Backend:
    """The backend with a post-processor that puts the start token before a text.

    It does so only for a model whose texts begin with one.
    """
    copy = Backend.from_str(backend.to_str())
    if tokenizer.adds_bos and tokenizer.bos_token is not None:
        copy.post_processor = processors.TemplateProcessing(
            single=f"{tokenizer.bos_token}:0 $A:0",
            pair=f"{tokenizer.bos_token}:0 $A:0 $B:1",
            special_tokens=[(tokenizer.bos_token, tokenizer.bos_token_id)],
        )
    return copy


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
