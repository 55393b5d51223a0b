"""One call in the syntax of families that few models have."""

from __future__ import annotations

import json

from rvllm_local.text import tags
from rvllm_local.text.grammar.argument_lists import (
    ArgumentSyntax,
    text_value,
    typed_value,
)
from rvllm_local.text.grammar.call_parts import (
    CallSyntax,
    framed_call,
    listed_call,
    object_call,
    python_call,
)
from rvllm_local.text.grammar.called_tools import Tool
from rvllm_local.text.grammar.lark import Lark, quoted


def _keyed_call(lark: Lark, tool: Tool) -> str:
    """An object whose only key is the tool's name."""
    head = quoted(f"{{{json.dumps(tool.name)}: ")
    return f"{head} {lark.json(tool.schema)} {quoted('}')}"


_GCML_END = f"</{tags.GCML}parameter>"
_GCML_ARGUMENTS = ArgumentSyntax(
    lambda key: f'<{tags.GCML}parameter name="{key}" string="',
    typed_value('true">', 'false">', _GCML_END),
    f"{_GCML_END}\n",
)
_DOTS_ARGUMENTS = ArgumentSyntax(
    lambda key: f'<parameter name="{key}">', text_value, "</parameter>\n"
)
_PLAMO_HEAD = (
    f"{tags.PLAMO_CALL[0]}{tags.PLAMO_NAME[0]}NAME{tags.PLAMO_NAME[1]}"
    f"{tags.PLAMO_ARGUMENTS[0]}{tags.PLAMO_JSON}{tags.PLAMO_MESSAGE}"
)

RARE = {
    "olmo": CallSyntax(
        python_call,
        tags.OLMO_CALLS[0],
        between="\n",
        last=tags.OLMO_CALLS[1],
        repeats=False,
    ),
    "apertus": CallSyntax(
        _keyed_call,
        tags.APERTUS[0],
        "[",
        ", ",
        f"]{tags.APERTUS[1]}",
        repeats=False,
    ),
    "solar": CallSyntax(
        framed_call(
            f"{tags.SOLAR_CALL[0]}0{tags.SOLAR_NAME}NAME{tags.SOLAR_ARGUMENTS}",
            tags.SOLAR_CALL[1],
        ),
        tags.SOLAR_CALLS,
        repeats=False,
    ),
    "plamo": CallSyntax(
        framed_call(_PLAMO_HEAD, f"{tags.PLAMO_ARGUMENTS[1]}{tags.PLAMO_CALL[1]}"),
        None,
        first=tags.PLAMO_CALLS[0],
        last=tags.PLAMO_CALLS[1],
        repeats=False,
    ),
    "dots": CallSyntax(
        listed_call('<invoke name="NAME">\n', _DOTS_ARGUMENTS, "</invoke>\n"),
        tags.DOTS[0],
        first="\n",
        last=tags.DOTS[1],
        repeats=False,
    ),
    "granite_code": CallSyntax(
        object_call("arguments"), tags.GRANITE_CODE[0], first=" "
    ),
    "gigachat": CallSyntax(
        object_call("arguments"), None, first=f"{tags.GIGACHAT}\n", can_repeat=False
    ),
    "gigachat_tags": CallSyntax(
        listed_call(
            f'<{tags.GCML}invoke name="NAME">\n',
            _GCML_ARGUMENTS,
            f"</{tags.GCML}invoke>\n",
        ),
        None,
        first=f"<{tags.GCML}tool_calls>\n",
        last=f"</{tags.GCML}tool_calls>",
        repeats=False,
    ),
}
