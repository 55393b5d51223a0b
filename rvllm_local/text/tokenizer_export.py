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
    "tokenizer_config.json",
    "added_tokens.json",
    "chat_template.jinja",
    "LICENSE",
)
_FROM_GENERATION = "generation_config.json"


def tokenizer_folder_files(files: ModelFiles, tokenizer: Tokenizer) -> dict[str, bytes]:
    """Contents by file name, from which `read_tokenizer` makes the same tokenizer again."""
    if files.kind != "gguf":
        names = [
            name
            for name in (*_FILES, _FROM_GENERATION)
            if (files.path / name).is_file()
        ]
        return {name: (files.path / name).read_bytes() for name in names}
    backend = tokenizer.backend
    settings: dict[str, Any] = {
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "add_bos_token": tokenizer.adds_bos,
        "chat_template": tokenizer.chat_template,
    }
    kept = {name: value for name, value in settings.items() if value is not None}
    found = {"tokenizer_config.json": _json(kept)}
    if isinstance(backend, SentencePieceBackend):
        return {**found, "tokenizer.model": backend.to_bytes()}
    return {
        **found,
        "tokenizer.json": _with_start(backend, tokenizer).to_str().encode(),
    }


def _with_start(backend: Backend, tokenizer: Tokenizer) -> Backend:
    """The backend with a post-processor that says whether a text begins with the start token."""
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
