"""A model's syntax of calls is what its template writes, not what words it holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rvllm_local.models.locate import ModelFiles
from rvllm_local.text.detect_style import detect_style
from rvllm_local.text.tokenizer_files import read_tokenizer
from tests.support.tiny import save_tokenizer

ROWS = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}CALL{% endfor %}{% endfor %}"
NAME = "{{ c.function.name }}"
ARGUMENTS = "{{ c.function.arguments | tojson }}"
OBJECT = '{"name": "' + NAME + '", "arguments": ' + ARGUMENTS + "}"
EACH = "{% for k, v in c.function.arguments.items() %}"
# What a template writes for a call, and the family that it proves.
WRITTEN = [
    ("<tool_call>\n" + OBJECT + "\n</tool_call>", "hermes"),
    (OBJECT, "json"),
    (OBJECT.replace('"arguments"', '"parameters"'), "json"),
    ("<|python_tag|>" + OBJECT, "llama3"),
    ("[TOOL_CALLS][" + OBJECT + "]", "mistral"),
    ("[TOOL_CALLS]" + NAME + "[ARGS]" + ARGUMENTS, "mistral_args"),
    ("<TOOLCALL>[" + OBJECT + "]</TOOLCALL>", "nemotron"),
    ("<|tool_call|>[" + OBJECT + "]<|/tool_call|>", "phi"),
    (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions." + NAME + ":0"
        "<|tool_call_argument_begin|>"
        + ARGUMENTS
        + "<|tool_call_end|><|tool_calls_section_end|>",
        "kimi",
    ),
    (
        '<minimax:tool_call>\n<invoke name="'
        + NAME
        + '">\n'
        + EACH
        + '<parameter name="{{ k }}">{{ v }}</parameter>\n{% endfor %}</invoke>\n'
        "</minimax:tool_call>",
        "minimax",
    ),
    (
        "<seed:tool_call>\n<function="
        + NAME
        + ">\n"
        + EACH
        + "<parameter={{ k }}>{{ v }}</parameter>\n{% endfor %}</function>\n"
        "</seed:tool_call>",
        "seed",
    ),
    ("<function=" + NAME + ">" + ARGUMENTS + "</function>", "function_tag"),
    (
        "<|tool_call_start|>["
        + NAME
        + "("
        + EACH
        + "{{ k }}={{ v | tojson }}{% endfor %})]<|tool_call_end|>",
        "lfm2",
    ),
    ("[" + NAME + "(" + EACH + "{{ k }}={{ v | tojson }}{% endfor %})]", "pythonic"),
    (
        "<|tool_call>call:"
        + NAME
        + "{"
        + EACH
        + """{{ k }}:<|"|>{{ v }}<|"|>{% endfor %}}<tool_call|>""",
        "gemma4",
    ),
    # A syntax that nobody reads: tools are explained.
    ("<<" + NAME + ">>" + ARGUMENTS + '{# "name", "arguments", tools #}', None),
]


def style(folder: Path, template: str) -> Any:
    save_tokenizer(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    text = json.dumps({**settings, "chat_template": template})
    path.write_text(text, encoding="utf-8")
    return detect_style(read_tokenizer(ModelFiles("folder", folder, "tiny")), "llama")


@pytest.mark.parametrize(("call", "family"), WRITTEN)
def test_the_family_reads_what_the_template_writes(
    tmp_path: Path, call: str, family: str | None
) -> None:
    opening = "{% if add_generation_prompt %}{% endif %}"
    assert style(tmp_path, ROWS.replace("CALL", call) + opening).tool_family == family


def test_words_alone_prove_no_bare_json(tmp_path: Path) -> None:
    template = ROWS.replace("CALL", "") + '{# tools: "name", "arguments" #}'
    assert style(tmp_path, template).tool_family is None


@pytest.mark.parametrize(
    ("end", "start"),
    [
        ("</think>", "<think>"),
        ("</seed:think>", "<seed:think>"),
        ("<channel|>", "<|channel>thought"),
    ],
)
def test_thoughts_are_known_by_their_end(tmp_path: Path, end: str, start: str) -> None:
    assert style(tmp_path, ROWS + "{# " + end + " #}").reasoning_start == start
