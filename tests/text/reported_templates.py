"""Chat templates and conversations that were reported to other servers.

The templates are described by the smallest text that does the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Reported:
    """A prompt: who reported it, its template and conversation, and how it must read.

    options: what the call says beside its messages. refused: what the error says, where
    the template has to refuse.
    """

    source: str
    template: str
    messages: list[Row]
    prompt: str
    options: Mapping[str, Any] = field(default_factory=dict)
    refused: bool = False


def system(text: str) -> Row:
    return {"role": "system", "content": text}


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def assistant(text: str | None, **more: Any) -> Row:
    return {"role": "assistant", "content": text, **more}


def calling(arguments: str, text: str | None = None, **more: Any) -> Row:
    function = {"name": "look", "arguments": arguments}
    call = {"id": "call_1", "type": "function", "function": function}
    return assistant(text, tool_calls=[call], **more)


RESULT: Row = {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}
TOOL: Row = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": ["string", "null"]},
                "any": {"anyOf": [{"type": "string"}]},
            },
        },
    },
}
WITH_TOOL = {"tools": (TOOL,)}
CONTINUED = {"continues": True}
HI, OSLO = user("Hi"), '{"city": "Oslo"}'

_EACH = "{% for m in messages %}"
_END = "{% endfor %}"
_ROW = "{{ m.role }}:{{ m.content }};"
_CALLS = "{% for c in m.tool_calls or [] %}<{{ c.function.name }}{% for k, v in c.function.arguments|items %} {{ k }}={{ v }}{% endfor %}>{% endfor %}"
ITEMS = _EACH + _ROW + _CALLS + _END + "{% if tools %}[{{ tools|length }}]{% endif %}"
FIRST_ONLY = (
    _EACH
    + "{% if m.role == 'system' and not loop.first %}{{ raise_exception('System message must be at the beginning.') }}{% endif %}"
    + _ROW
    + _END
)
WANTS_USER = (
    "{% set ns = namespace(q=false) %}{% for m in messages[::-1] if m.role == 'user' %}{% set ns.q = true %}{% endfor %}{% if not ns.q %}{{ raise_exception('No user query found in messages.') }}{% endif %}"
    + ITEMS
)
ALTERNATES = (
    "{% set ns = namespace(i=0) %}"
    + _EACH
    + "{% if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}{% if (m.role == 'user') != (ns.i % 2 == 0) %}{{ raise_exception('conversation roles must alternate') }}{% endif %}{% set ns.i = ns.i + 1 %}{% endif %}"
    + _ROW
    + _CALLS
    + _END
    + "{{ tools|length if tools }}"
)
TRIMS = (
    _EACH
    + "<|im_start|>{{ m.role }}\n{{ m.content|trim }}<|im_end|>\n"
    + _END
    + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPLITS = (
    _EACH
    + "{% if '</think>' in m.content %}{{ m.content.split('</think>')[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %};"
    + _CALLS
    + _END
    + "{{ tools|length if tools }}"
)
NO_OPENING = _EACH + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n" + _END
PARTS = _EACH + "{{ m.role }}:{% for p in m.content %}{{ p.text }}{% endfor %};" + _END
TYPED_PARTS = (
    _EACH
    + "{{ m.role }}{% if m.content[0]['type'] == 'image' %}:{% else %}: {% endif %}{% for p in m.content %}{% if p['type'] == 'text' %}{{ p['text'] }}{% endif %}{% endfor %};"
    + _END
)
USER_PARTS = (
    _EACH
    + "{% if m.role == 'user' %}{{ m.content[0]['text'] + '!' }}{% else %}{{ m.content + '.' }}{% endif %}"
    + _END
)
EITHER = (
    _EACH
    + "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}<{{ p.text }}>{% endfor %}{% endif %};"
    + _END
)
UPPER = (
    "{% for t in tools or [] %}{% for k, v in t.function.parameters.properties|dictsort %}{{ k }}:{{ v['type']|upper }} {% endfor %}{% endfor %}"
    + _EACH
    + "{{ m.content }}"
    + _CALLS
    + _END
)

REPORTED = [
    # Arguments of earlier calls: the API has them as a text that a model wrote.
    *(Reported(source, ITEMS, [HI, calling(OSLO), RESULT], "user:Hi;assistant:;<look city=Oslo>tool:sunny;[1]", WITH_TOOL) for source in ("Qwen3-Coder 444", "Qwen3 1894", "omlx 854", "Rapid-MLX 973", "LocalAI 10256")),
    Reported("xinference 5060", ITEMS, [HI, calling("null"), RESULT], "user:Hi;assistant:;<look>tool:sunny;[1]", WITH_TOOL),
    Reported("AReaL 1501", ITEMS, [HI, calling(""), RESULT], "user:Hi;assistant:;<look>tool:sunny;[1]", WITH_TOOL),
    # No content, or none at all, beside a call.
    Reported("mlx-vlm 1785", SPLITS, [HI, calling(OSLO), RESULT], "Hi;;<look city=Oslo>sunny;1", WITH_TOOL),
    Reported("jan 6123", SPLITS, [HI, assistant(None)], "Hi;;"),
    Reported("vllm 13978", ITEMS, [HI, assistant("Yes", tool_calls=[]), HI], "user:Hi;assistant:Yes;user:Hi;"),
    # System messages that a template takes at the beginning alone, and once.
    Reported("llama.cpp 20733", FIRST_ONLY, [system("a"), system("b"), HI], "system:a\n\nb;user:Hi;"),
    Reported("llama.cpp 20733", FIRST_ONLY, [system("a"), HI, assistant("Yes"), system("b"), HI], "system:a;user:Hi;assistant:Yes;user:b;user:Hi;"),
    Reported("llama.cpp 20733", FIRST_ONLY, [HI, system("b"), HI], "user:Hi;user:b;user:Hi;"),
    # Conversations whose beginning was cut off.
    Reported("OmniRoute 4982", WANTS_USER, [calling(OSLO), RESULT], "user:;assistant:;<look city=Oslo>tool:sunny;[1]", WITH_TOOL),
    Reported("OmniRoute 4982", WANTS_USER, [system("a"), assistant("Yes")], "user:a;assistant:Yes;"),
    Reported("OmniRoute 4982", WANTS_USER, [system("a")], "user:a;"),
    # Turns that have to alternate, with calls between them.
    Reported("lmstudio 1342", ALTERNATES, [HI, calling(OSLO), RESULT, assistant("Yes"), HI], "user:Hi;assistant:;<look city=Oslo>tool:sunny;assistant:Yes;user:Hi;1", WITH_TOOL),
    Reported("lmstudio 1342", ALTERNATES, [HI, user("There")], "user:Hi\n\nThere;"),
    # An answer that is continued, in templates that trim or cut it.
    Reported("transformers 34214", TRIMS, [HI, assistant("It is ")], "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nIt is ", CONTINUED),
    Reported("transformers 34253", TRIMS, [HI, assistant("a\n\n")], "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\na\n\n", CONTINUED),
    Reported("transformers 36404", TRIMS, [HI, assistant("Hi"), HI, assistant("Hi ")], "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHi<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHi ", CONTINUED),
    Reported("transformers 35433", SPLITS, [HI, assistant("<think>Hm.</think>\n\nIt is ")], "Hi;It is ", CONTINUED),
    # Answers that nothing opens.
    Reported("mlx-examples 637", NO_OPENING, [HI], "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
    Reported("textgen 5411", TRIMS, [system("a"), HI], "<|im_start|>system\na<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
    # Contents as parts, and as text.
    Reported("mlx-examples 1195", PARTS, [system("a"), HI, assistant("Yes"), user("So")], "system:a;user:Hi;assistant:Yes;user:So;"),
    Reported("unsloth 10092", TYPED_PARTS, [HI, assistant("Yes"), HI], "user: Hi;assistant: Yes;user: Hi;"),
    Reported("unsloth 10092", USER_PARTS, [HI, assistant("Yes"), HI], "Hi!Yes.Hi!"),
    Reported("sglang 22595", EITHER, [HI, assistant("Yes")], "Hi;Yes;"),
    # Types of parameters that are lists, or left out.
    *(Reported(source, UPPER, [HI, calling(OSLO), RESULT], "any: city:['STRING', 'NULL'] Hi<look city=Oslo>sunny", WITH_TOOL) for source in ("llama.cpp 21347", "zeroclaw 5224", "pi-parallel 4", "lmstudio 1749")),
    # Filters, tests and functions that other engines lack.
    Reported("lmstudio 884", "{{ messages[0].content|safe }}", [user("<b>")], "<b>"),
    Reported("zed 45379", "{{ messages is sequence }} {{ messages[0].content is mapping }}Hi", [HI], "True FalseHi"),
    Reported("node-llama-cpp 366", "{{ messages|rejectattr('role', 'equalto', 'system')|list|length }}{{ messages|map(attribute='content')|join }}", [system("a"), HI], "1aHi"),
    Reported("llama.cpp 18974", "{{ none|string ~ messages[0].content }}", [HI], "NoneHi"),
    Reported("llama.cpp 14939", "{{ messages[0].content }}{{ '/n' if (x is defined and not x and not messages[0].content.endswith('/n')) else '' }}", [HI], "Hi"),
    Reported("gpt4all 3305", "{%- if not tools is defined %}{%- set tools = none %}{%- endif %}{{ tools is none }}{{ messages[0].content }}", [HI], "TrueHi"),
    Reported("mistral.rs 179", "{% for i in range(2, -1, -1) %}{{ i }}{% endfor %}{% generation %}{{ messages[0].content }}{% endgeneration %}", [HI], "210Hi"),
    Reported("lmstudio 577", "{{ strftime_now('%H:%M:%S')|length }}{{ messages[0].content }}", [HI], "8Hi"),
    Reported("lmstudio 465", "{{ strftime_now('%Y')|length }}{{ messages[0].content }}", [HI], "4Hi"),
    Reported("llama.cpp 11402", "{% set m = messages[0] %}{% if m.content is defined and m.content.content is defined %}no{% else %}{{ m.content }}{% endif %}", [HI], "Hi"),
    # What no other form mends is said in the template's words.
    Reported("llama.cpp 11400", "{{ raise_exception('never') }}", [HI], "never", refused=True),
]  # fmt: skip
