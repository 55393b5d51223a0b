"""Templates, special tokens and turn ends are found wherever the ecosystem puts them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rvllm_local.errors import ModelFileError
from rvllm_local.models.locate import ModelFiles
from rvllm_local.text.chat_templates import (
    ChatTemplates,
    templates_of_folder,
    templates_of_gguf,
)
from rvllm_local.text.tokenizer import Tokenizer
from rvllm_local.text.tokenizer_files import read_tokenizer
from tests.support.tiny import save_tokenizer

NAMED = [
    {"name": "default", "template": "plain"},
    {"name": "tool_use", "template": "with tools"},
]
BOTH = ("plain", "with tools")
USER = [{"role": "user", "content": "Hi"}]


def write(folder: Path, name: str, value: Any) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    text = value if isinstance(value, str) else json.dumps(value)
    path.write_text(text, encoding="utf-8")


def texts(templates: ChatTemplates) -> tuple[str | None, str | None]:
    return templates.default, templates.tool_use


def test_a_list_of_named_templates(tmp_path: Path) -> None:
    assert texts(templates_of_folder(tmp_path, {"chat_template": NAMED})) == BOTH
    assert texts(templates_of_folder(tmp_path, {"chat_template": "x"})) == ("x", None)
    assert texts(templates_of_folder(tmp_path, {})) == (None, None)


def test_files_count_before_settings(tmp_path: Path) -> None:
    write(tmp_path, "chat_template.jinja", "plain")
    write(tmp_path, "additional_chat_templates/tool_use.jinja", "with tools")
    assert texts(templates_of_folder(tmp_path, {"chat_template": "old"})) == BOTH


def test_a_mark_of_the_byte_order_is_no_part_of_a_template(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("\ufeffx", encoding="utf-8")
    assert texts(templates_of_folder(tmp_path, {})) == ("x", None)


def test_an_end_that_the_tokenizer_lacks_names_both_sources(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"<\|nope\|>.*tokenizer.json does not"):
        tokenizer(tmp_path, eos_token="<|nope|>")


def test_the_default_may_stand_in_the_settings(tmp_path: Path) -> None:
    write(tmp_path, "additional_chat_templates/tool_use.jinja", "with tools")
    assert texts(templates_of_folder(tmp_path, {"chat_template": "plain"})) == BOTH


@pytest.mark.parametrize("value", ["plain", NAMED])
def test_a_file_of_older_processors(tmp_path: Path, value: Any) -> None:
    write(tmp_path, "chat_template.json", {"chat_template": value})
    assert templates_of_folder(tmp_path, {}).default == "plain"


def test_named_templates_of_a_gguf_file(tmp_path: Path) -> None:
    keys = {
        "tokenizer.chat_template": "plain",
        "tokenizer.chat_template.tool_use": "with tools",
        "tokenizer.chat_templates": ["tool_use"],
    }
    assert texts(templates_of_gguf(keys, tmp_path)) == BOTH


@pytest.mark.parametrize("value", [[NAMED[1]], [], 5, [None]])
def test_a_list_without_a_default_names_the_file(tmp_path: Path, value: Any) -> None:
    with pytest.raises(ModelFileError, match=r"tokenizer_config\.json"):
        templates_of_folder(tmp_path, {"chat_template": value})


def tokenizer(folder: Path, **settings: Any) -> Tokenizer:
    save_tokenizer(folder)
    path = folder / "tokenizer_config.json"
    given = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**given, **settings}), encoding="utf-8")
    return read_tokenizer(ModelFiles("folder", folder, "tiny"))


def test_tools_are_shown_by_the_template_that_knows_them(tmp_path: Path) -> None:
    model = tokenizer(tmp_path, chat_template=NAMED)
    assert model.render_chat(USER) == "plain"
    assert model.render_chat(USER, tools=[{}]) == "with tools"


def test_named_tokens_reach_the_template(tmp_path: Path) -> None:
    write(tmp_path, "special_tokens_map.json", {"pad_token": {"content": "PAD"}})
    model = tokenizer(
        tmp_path,
        chat_template="{{ pad_token }} {{ image_token }} {{ bos_token }}",
        extra_special_tokens={"image_token": "<image>"},
    )
    assert model.render_chat(USER) == "PAD <image> <|im_start|>"


def test_a_token_of_the_vocabulary_that_settings_call_special(tmp_path: Path) -> None:
    model = tokenizer(tmp_path, additional_special_tokens=["A"])
    (token,) = model.encode("A", special=True, bos=False)
    assert model.id_to_bytes(token) is None


@pytest.mark.parametrize(
    ("template", "ends"),
    [
        # ChatML: the end of a turn beside the end of a text.
        (None, {"<|endoftext|>", "<|im_end|>"}),
        # No end of its own: the next turn's opening ends this one.
        (
            "{% for m in messages %}{{ '<|im_start|>' + m.content }}{% endfor %}",
            {"<|endoftext|>", "<|im_start|>"},
        ),
        ("{% for m in messages %}{{ m.content }} or{% endfor %}", {"<|endoftext|>"}),
        ("{{ raise_exception('no') }}", {"<|endoftext|>"}),
    ],
)
def test_a_turn_ends_as_the_template_ends_it(
    tmp_path: Path, template: str | None, ends: set[str]
) -> None:
    settings = {} if template is None else {"chat_template": template}
    model = tokenizer(tmp_path, **settings)
    assert model.end_token_ids == {model.special_token_id(text) for text in ends}
