"""What is written of a tokenizer is read back as the same one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rvllm_local.models.locate import ModelFiles
from rvllm_local.text.chat_templates import ChatTemplates
from rvllm_local.text.tokenizer import Tokenizer
from rvllm_local.text.tokenizer_export import tokenizer_folder_files
from rvllm_local.text.tokenizer_files import read_tokenizer
from tests.support.tiny import save_tokenizer

MESSAGES = [{"role": "user", "content": "x"}]


def read(folder: Path) -> Tokenizer:
    return read_tokenizer(ModelFiles("folder", folder, "tiny"))


def exported(files: ModelFiles, tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    folder.mkdir()
    for name, content in tokenizer_folder_files(files, tokenizer).items():
        (folder / name).write_bytes(content)
    return read(folder)


@pytest.mark.parametrize("place", ["settings", "folder"])
def test_a_template_for_tools_is_kept(tmp_path: Path, place: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    save_tokenizer(source)
    path = source / "tokenizer_config.json"
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if place == "settings":
        settings["chat_template"] = [
            {"name": "default", "template": "D"},
            {"name": "tool_use", "template": "T"},
        ]
    else:
        (source / "chat_template.jinja").write_text("D")
        more = source / "additional_chat_templates"
        more.mkdir()
        (more / "tool_use.jinja").write_text("T")
    path.write_text(json.dumps(settings), encoding="utf-8")
    (source / "special_tokens_map.json").write_text('{"pad_token": "<|im_end|>"}')
    files = ModelFiles("folder", source, "tiny")
    copy = exported(files, read(source), tmp_path / "copy")
    assert copy.render_chat(MESSAGES) == "D"
    assert copy.render_chat(MESSAGES, tools=[{}]) == "T"
    assert copy.eos_token == read(source).eos_token


def test_named_templates_of_a_gguf_file_are_kept(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    save_tokenizer(source)
    plain = read(source)
    tokenizer = Tokenizer(
        plain.backend,
        bos_token=plain.bos_token,
        eos_token=plain.eos_token,
        templates=ChatTemplates("D", "T"),
    )
    files = ModelFiles("gguf", source / "model.gguf", "tiny")
    copy = exported(files, tokenizer, tmp_path / "copy")
    assert copy.render_chat(MESSAGES) == "D"
    assert copy.render_chat(MESSAGES, tools=[{}]) == "T"
