"""Twelve chat templates in the manner of as many families, and how their models write."""

from __future__ import annotations

from dataclasses import dataclass

from tests.text.outputs import (
    DEEPSEEK_31,
    GEMMA_FUNCTION,
    GLM,
    HARMONY,
    HERMES,
    QWEN,
)

_ROWS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    "{% for c in m.tool_calls or [] %}CALL{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
)
_OPENING = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
_TOOLS = "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
_HERMES_CALL = (
    """{{ '<tool_call>\\n{"name": "' + c.function.name + '", "arguments": ' }}"""
    """{{ (c.function.arguments | tojson) + '}\\n</tool_call>' }}"""
)
_EACH = "{% for k, v in c.function.arguments.items() %}"
_CODER_CALL = (
    "<tool_call>\n<function={{ c.function.name }}>\n"
    + _EACH
    + "<parameter={{ k }}>\n{{ v }}\n</parameter>\n{% endfor %}</function>\n</tool_call>"
)
_GLM_CALL = (
    "<tool_call>{{ c.function.name }}\n" + _EACH + "<arg_key>{{ k }}</arg_key>\n"
    "<arg_value>{{ v }}</arg_value>\n{% endfor %}</tool_call>"
)


def _with_call(call: str) -> str:
    return _TOOLS + _ROWS.replace("CALL", call) + _OPENING


@dataclass(frozen=True)
class Family:
    """A template, how its model writes the call of `look`, and how it thinks."""

    name: str
    template: str
    call: str = HERMES
    thought: str = ""


FAMILIES = (
    Family("plain", _ROWS.replace("CALL", "") + _OPENING),
    Family("no-name", "{% for m in messages %}{{ m.content }}\n{% endfor %}"),
    Family("hermes", _with_call(_HERMES_CALL)),
    Family(
        "thinking",
        _with_call(_HERMES_CALL)
        + "{% if enable_thinking is defined and not enable_thinking %}"
        "<think>\n\n</think>\n\n{% endif %}",
        thought="<think>\nLet me see.\n</think>\n\n",
    ),
    Family(
        "thinks-at-once",
        "{% set end = '</think>' %}"
        + _ROWS.replace("CALL", "")
        + "{% if add_generation_prompt %}"
        "{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}",
        thought="Let me see.\n</think>\n",
    ),
    Family("coder", _with_call(_CODER_CALL), QWEN),
    Family("glm", _with_call(_GLM_CALL), GLM),
    Family(
        "llama3",
        "{% for m in messages %}<|start_header_id|>{{ m.role }}\n{{ m.content }}"
        "{% endfor %}{% for t in tools or [] %}"
        '{{ t | tojson }}{"name": n, "parameters": p}{% endfor %}',
        '{"name": "look", "parameters": {"city": "Oslo", "days": 3}}',
    ),
    Family(
        "mistral",
        "{% for m in messages %}"
        "{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "[INST]{{ m.content }}[/INST]{% endfor %}{{ tools }}[TOOL_CALLS][ARGS]",
        '[TOOL_CALLS]look[ARGS]{"city": "Oslo", "days": 3}',
    ),
    Family(
        "gemma",
        "{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}"
        "<end_of_turn>\n{% endfor %}{{ tools }}<start_function_call>",
        GEMMA_FUNCTION,
    ),
    Family(
        "deepseek",
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}{{ tools }}"
        "<｜tool▁call▁begin｜>f<｜tool▁sep｜>",
        DEEPSEEK_31,
    ),
    Family(
        "harmony",
        "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>"
        "{% endfor %}{{ tools }}<|start|>assistant{# <|channel|> #}",
        HARMONY,
        thought="<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant",
    ),
)
