"""A model's style is read off its chat template, and every family that is found has a parser and a grammar."""

from __future__ import annotations

import pytest

from rvllm_local.text.families import detect, style_of
from rvllm_local.text.grammar.formats import (
    grammar_for_tools,
)
from rvllm_local.text.tools import FAMILIES, parser_for
from tests.text.outputs import TOOLS

IM = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
CASES = [
    (None, "llama", None, None, False),
    (IM, "qwen2", None, None, False),
    (IM + "{% if tools %}<tools></tools><tool_call></tool_call>{% endif %}", "qwen2", "hermes", None, False),
    (
        IM + "<tool_call>{% if '</think>' in content %}{% endif %}"
        "{% if add_generation_prompt %}{% if enable_thinking is false %}<think>\n\n</think>{% endif %}{% endif %}",
        "qwen3", "hermes", "<think>", False,
    ),
    (
        IM + "<tool_call>{{ content.split('</think>')[-1] }}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}",
        "qwen3", "hermes", "<think>", True,
    ),
    (IM + "<tool_call><function=name><parameter=x>", "qwen3_moe", "qwen3_coder", None, False),
    (IM + "<tool_call>{name}<arg_key>k</arg_key><arg_value>", "glm4_moe", "glm", None, False),
    ('<|start_header_id|>{% if tools %}{"name": n, "parameters": p}{% endif %}', "llama", "llama3", None, False),
    ("<|start_header_id|>{{ m.content }}", "llama", None, None, False),
    ("[AVAILABLE_TOOLS][TOOL_CALLS][{", "mistral", "mistral", None, False),
    ("[TOOL_CALLS]name[ARGS]{}", "mistral3", "mistral_args", None, False),
    ("<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n", "deepseek_v3", "deepseek", None, False),
    ("<｜tool▁call▁begin｜>f<｜tool▁sep｜>", "deepseek_v3", "deepseek_v31", None, False),
    ("<|start|>assistant<|channel|>analysis<|message|>", "gpt_oss", "harmony", None, False),
    (None, "gpt_oss", "harmony", None, False),
    ("<start_of_turn>{{ m.content }}", "gemma3_text", "gemma", None, False),
]  # fmt: skip


@pytest.mark.parametrize(
    ("template", "model_type", "family", "thinks", "inside"), CASES
)
def test_styles_are_detected(
    template: str | None,
    model_type: str,
    family: str | None,
    thinks: str | None,
    inside: bool,
) -> None:
    style = detect(template, model_type)
    assert (
        style.tool_family,
        style.reasoning_start,
        style.reasoning_starts_inside,
    ) == (family, thinks, inside)
    assert style.tool_family is None or style.tool_family in FAMILIES


def test_tags_of_a_style_are_kept() -> None:
    assert {"<tool_call>", "</tool_call>", "<think>"} <= style_of(
        "hermes", ("<think>", "</think>")
    ).kept_special
    assert "<|channel|>" in style_of("harmony").kept_special
    assert style_of(None).kept_special == frozenset()


def test_a_prompt_tells_whether_it_ends_inside_a_thought() -> None:
    style = style_of("hermes", ("<think>", "</think>"))
    assert style.starts_inside("<|im_start|>assistant\n<think>\n")
    assert not style.starts_inside("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not style_of("hermes").starts_inside("<think>")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_parser_and_a_grammar(family: str) -> None:
    assert parser_for(family).feed("") == []
    assert grammar_for_tools(TOOLS, "required", family, parallel=True)
