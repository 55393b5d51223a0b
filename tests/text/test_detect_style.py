"""A model's syntax of calls is what its template writes, not what words it holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rvllm_local.models.catalogue import Catalogue, CatalogueEntry
from rvllm_local.models.locate import ModelFiles
from rvllm_local.text.detect_style import detect_style, entry_of
from rvllm_local.text.families import OutputStyle
from rvllm_local.text.tokenizer_files import read_tokenizer
from rvllm_local.text.tools import FAMILIES
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


def style(
    folder: Path, template: str, entry: CatalogueEntry | None = None
) -> OutputStyle:
    save_tokenizer(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    text = json.dumps({**settings, "chat_template": template})
    path.write_text(text, encoding="utf-8")
    tokenizer = read_tokenizer(ModelFiles("folder", folder, "tiny"))
    return detect_style(tokenizer, "llama", entry)


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


def entry(tools: str | None, reasoning: str | None) -> CatalogueEntry:
    return CatalogueEntry(
        "m", "M", "MIT", 1, 1, tools=tools, reasoning=reasoning, repo="owner/m"
    )


def test_the_catalogue_says_what_a_template_does_not_show(tmp_path: Path) -> None:
    silent = ROWS.replace("CALL", "") + "{{ tools }}"
    found = style(tmp_path, silent, entry("mistral", "think"))
    assert (found.tool_family, found.reasoning_start) == ("mistral", "<think>")
    shown = ROWS.replace("CALL", "<tool_call>" + OBJECT + "</tool_call>")
    assert style(tmp_path, shown, entry("mistral", None)).tool_family == "hermes"


def test_an_entry_is_known_by_its_name_and_its_repository(tmp_path: Path) -> None:
    catalogue = Catalogue({"m": entry("phi", None)})
    for name in ("m", "M", "owner/m", "Owner/M"):
        assert catalogue.of_model(name) is catalogue.entries["m"]
    assert catalogue.of_model("other") is None
    known = entry_of(ModelFiles("folder", tmp_path, "qwen3-8b"))
    assert known is not None and known.tools == "hermes"


def test_every_family_of_the_catalogue_has_a_parser() -> None:
    for known in Catalogue.load().entries.values():
        assert known.tools is None or known.tools in FAMILIES, known.name
        assert known.reasoning in (None, "think", "harmony"), known.name
