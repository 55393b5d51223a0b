"""Templates render as the reference, transformers, renders them.

The templates use what published ones use: loops with break, namespaces, macros, JSON with
its options, dates, generation blocks, and the methods of texts and objects.
"""

from __future__ import annotations

from typing import Any

import pytest

from rvllm_local.text.template import render_chat
from tests.text.reference_rendering import reference_text

TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": 'Says "what" it is like <there>.',
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "ä": {"type": ["null"]}},
        },
    },
}
CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "look", "arguments": {"city": "Rome", "n": [1, True, None]}},
}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": " Hello <b>&\n"}],
    "system": [
        {"role": "system", "content": "Be 'brief'."},
        {"role": "user", "content": "Hi"},
    ],
    "turns": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>x</think>\n\nb"},
        {"role": "user", "content": "c"},
    ],
    "calls": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": "sunny", "tool_call_id": "c1", "name": "look"},
    ],
}
_BODY = {
    "generation": "{% generation %}{{ m.content }}{% set x = 1 %}{% endgeneration %}{{ x is defined }}",
    "json": "{{ m | tojson }}{{ m | tojson(indent=2) }}{{ m | tojson(ensure_ascii=True) }}",
    "json options": "{{ m | tojson(separators=(',', ':'), sort_keys=True) }}",
    "break": "{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}",
    "continue": "{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content }}",
    "namespace": "{% set ns = namespace(n=0) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}",
    "macro": "{% macro say(x, sep=': ') %}{{ x }}{{ sep }}{% endmacro %}{{ say(m.role) }}",
    "methods": "{{ m.content.split('</think>')[-1].lstrip('\n').strip().upper() }}"
    "{{ m.content.startswith('a') }}{{ m.role.title() }}{{ m.keys() | list }}",
    "items": "{% for k, v in m.items() %}{{ k }}={{ v }};{% endfor %}",
    "dictsort": "{% for k, v in m | dictsort %}{{ k }}{{ v }}{% endfor %}",
    "calls": "{% for c in m.tool_calls %}{{ c.function.name }}"
    "{% for k, v in c.function.arguments.items() %}{{ k }}"
    "{{ v if v is string else v | tojson }}{% endfor %}{% endfor %}",
    "tests": "{{ m.content is string }}{{ m.x is defined }}{{ m.tool_calls is iterable }}"
    "{{ m.content is mapping }}{{ m.content is none }}",
    "slices": "{{ messages[::-1][0].role }}{{ messages[1:] | length }}{{ m.content[:3] }}",
    "filters": "{{ m.content | trim | replace('a', 'b') | indent(2) }}{{ m | length }}"
    "{{ m.content | default('x', true) }}{{ messages | map(attribute='role') | join(',') }}",
    "select": "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
    "{{ messages | rejectattr('role', 'in', ['user']) | list | length }}",
    "concatenation": "{{ '<' ~ m.role ~ '|' + m.content + '>' }}{{ '%s' % m.role }}",
    "whitespace": "\n  {%- if true %}\n    {{- m.role }}\n  {%- endif %}\n",
    "dict": "{% set d = dict(a=1, **{'b': m.role}) %}{{ d.a }}{{ d.get('b') }}{{ d | tojson }}",
    "date": "{{ strftime_now('%Y') | length }}",
    "range": "{% for i in range(3) %}{{ i }}{% endfor %}{{ loop.first }}{{ loop.last }}",
    "recursion": "{% macro f(n) %}{% if n %}{{ n }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}",
    "tokens": "{{ bos_token }}{{ pad_token }}{{ unknown_thing }}{{ image_token }}",
    "tools": "{% for t in tools or [] %}{{ t.function.parameters.properties | tojson }}"
    "{{ t['function']['description'] }}{% endfor %}{{ documents }}",
    "call block": "{% macro wrap() %}[{{ caller() }}]{% endmacro %}{% call wrap() %}x{% endcall %}",
    "filter block": "{% filter upper %}{{ m.role }}{% endfilter %}",
    "set block": "{% set text %}{{ m.role }}!{% endset %}{{ text | trim }}",
    "prompt": "{% if loop.last and add_generation_prompt %}<a>{% endif %}",
    "ternary": "{{ 'y' if m.name is defined else 'n' }}{{ not m.x }}{{ m.x or 'z' }}",
    "numbers": "{{ 7 // 2 }}{{ 7 % 3 }}{{ 1.0 }}{{ 10 ** 2 }}{{ '3' | int + 1 }}",
    "fromkeys": "{{ dict.fromkeys(['a'], 1) }}",
}  # fmt: skip


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", _BODY)
def test_templates_render_as_the_reference_does(name: str, conversation: str) -> None:
    template = "{% for m in messages %}" + _BODY[name] + "{% endfor %}"
    messages = CONVERSATIONS[conversation]
    tools = [TOOL] if conversation == "calls" else None
    more = {"bos_token": "<s>", "pad_token": "<p>", "image_token": "<i>"}
    expected = reference_text(
        template, messages, tools, add_generation_prompt=True, **more
    )
    rendered = render_chat(
        template, messages, tools=tools, add_generation_prompt=True, **more
    )
    assert rendered == expected
