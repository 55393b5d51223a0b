"""One call in each family's syntax, as a rule. It knows tags and tools, no tokenizer."""

from __future__ import annotations

import json
import keyword

from rvllm_local.text import tags
from rvllm_local.text.grammar.argument_lists import (
    ArgumentSyntax,
    arguments_in_order,
    tagged_value,
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
from rvllm_local.text.grammar.call_syntax_rare import RARE
from rvllm_local.text.grammar.called_tools import Tool
from rvllm_local.text.grammar.lark import Lark, quoted


def _hermes_call(lark: Lark, tool: Tool) -> str:
    body = object_call("arguments")(lark, tool)
    return f"{body} {lark.text(chr(10) + tags.HERMES[1])}"


def _cohere_call(lark: Lark, tool: Tool) -> str:
    """An object in which a number stands before the name."""
    name = f'", "tool_name": {json.dumps(tool.name)}, "parameters": '
    number = quoted('{"tool_call_id": "') + " /[0-9]{1,2}/"
    return f"{number} {quoted(name)} {lark.json(tool.schema)} {quoted('}')}"


def _kimi_k3_call(lark: Lark, tool: Tool) -> str:
    opening, closing = tags.KIMI_K3_OPEN, tags.KIMI_K3_CLOSE
    head = lark.text(f'{opening}call tool="{tool.name}" index="')
    arguments = arguments_in_order(lark, tool, _KIMI_K3_ARGUMENTS)
    foot = lark.text(f"{closing}call{tags.KIMI_K3_SEP}")
    separator = lark.text(f'"{tags.KIMI_K3_SEP}')
    return f"{head} /[0-9]{{1,2}}/ {separator} {arguments} {foot}"


def _kimi_call(lark: Lark, tool: Tool) -> str:
    begin, end = tags.KIMI_CALL
    head = lark.text(f"{begin}functions.{tool.name}:")
    arguments = f"{lark.tag(tags.KIMI_ARGUMENTS)} {lark.json(tool.schema)}"
    return f"{head} /[0-9]{{1,3}}/ {arguments} {lark.tag(end)}"


def _is_python(tool: Tool) -> bool:
    """True if the tool and its arguments have names that Python takes."""
    names = (*tool.name.split("."), *tool.schema.get("properties", ()))
    return all(map(_is_name, names))


def _is_name(text: str) -> bool:
    return text.isascii() and text.isidentifier() and not keyword.iskeyword(text)


def _fenced_call(lark: Lark, tool: Tool) -> str:
    """Python, or JSON where a name is none in Python."""
    if _is_python(tool):
        return f"{python_call(lark, tool)} {quoted(chr(10) + '```')}"
    return f"{object_call('parameters')(lark, tool)} {quoted(chr(10) + '```')}"


def _escaped(key: str) -> str:
    return key.replace("&", "&amp;").replace('"', "&quot;")


def _key_and_value(key: str) -> str:
    opening, closing = tags.GLM_KEY
    return f"{opening}{key}{closing}\n{tags.GLM_VALUE[0]}"


_CODER_ARGUMENTS = ArgumentSyntax(
    lambda key: f"<parameter={key}>\n", text_value, "\n</parameter>\n"
)
_SEED_ARGUMENTS = ArgumentSyntax(
    lambda key: f"<parameter={key}>", text_value, "</parameter>\n"
)
_MINIMAX_ARGUMENTS = ArgumentSyntax(
    lambda key: f'<parameter name="{key}">', text_value, "</parameter>\n"
)
_GLM_ARGUMENTS = ArgumentSyntax(_key_and_value, text_value, f"{tags.GLM_VALUE[1]}\n")
_GEMMA4_ARGUMENTS = ArgumentSyntax(
    lambda key: f"{key}:", tagged_value(tags.GEMMA4_QUOTE), "", ","
)
_MINICPM_ARGUMENTS = ArgumentSyntax(
    lambda key: f'<param name="{key}">', text_value, "</param>"
)
_MUSE_ARGUMENTS = ArgumentSyntax(
    lambda key: f'<atem:parameter name="{key}">', text_value, "</atem:parameter>\n"
)
_LONGCAT_ARGUMENTS = ArgumentSyntax(
    lambda key: f"{key}".join(tags.LONGCAT_KEY) + f"\n{tags.LONGCAT_VALUE[0]}",
    text_value,
    f"{tags.LONGCAT_VALUE[1]}\n",
)
_K2_ARGUMENTS = ArgumentSyntax(
    lambda key: f"{key}".join(tags.IFM_KEY) + f"\n{tags.IFM_VALUE[0]}",
    text_value,
    f"{tags.IFM_VALUE[1]}\n",
)
_KIMI_K3_ARGUMENTS = ArgumentSyntax(
    lambda key: f'{tags.KIMI_K3_OPEN}argument key="{_escaped(key)}" type="',
    typed_value(
        f'string"{tags.KIMI_K3_SEP}', f'TYPE"{tags.KIMI_K3_SEP}', tags.KIMI_K3_CLOSE
    ),
    f"{tags.KIMI_K3_CLOSE}argument{tags.KIMI_K3_SEP}",
)
_MINIMAX_M3_ARGUMENTS = ArgumentSyntax(
    lambda key: f"{tags.MINIMAX_M3}<{key}>",
    typed_value("", "", tags.MINIMAX_M3),
    f"{tags.MINIMAX_M3}</KEY>",
)
_DSML_END = f"</{tags.DSML}parameter>"
_DSML_ARGUMENTS = ArgumentSyntax(
    lambda key: f'<{tags.DSML}parameter name="{key}" string="',
    typed_value('true">', 'false">', _DSML_END),
    f"{_DSML_END}\n",
)
_FENCE = "\n```json\n"

SYNTAXES = {
    "hermes": CallSyntax(_hermes_call, tags.HERMES[0], first="\n", between="\n"),
    "qwen3_coder": CallSyntax(
        listed_call(
            "\n<function=NAME>\n", _CODER_ARGUMENTS, f"</function>\n{tags.HERMES[1]}"
        ),
        tags.HERMES[0],
        between="\n",
    ),
    "seed": CallSyntax(
        listed_call(
            "\n<function=NAME>\n", _SEED_ARGUMENTS, f"</function>\n{tags.SEED[1]}"
        ),
        tags.SEED[0],
        between="\n",
    ),
    "minimax": CallSyntax(
        listed_call('<invoke name="NAME">\n', _MINIMAX_ARGUMENTS, "</invoke>\n"),
        tags.MINIMAX[0],
        first="\n",
        last=tags.MINIMAX[1],
        repeats=False,
    ),
    "minimax_m3": CallSyntax(
        listed_call(
            f'{tags.MINIMAX_M3}<invoke name="NAME">',
            _MINIMAX_M3_ARGUMENTS,
            f"{tags.MINIMAX_M3}</invoke>\n",
        ),
        tags.MINIMAX_M3,
        first="<tool_call>\n",
        last=f"{tags.MINIMAX_M3}</tool_call>",
        repeats=False,
    ),
    "deepseek_v32": CallSyntax(
        listed_call(
            f'<{tags.DSML}invoke name="NAME">\n',
            _DSML_ARGUMENTS,
            f"</{tags.DSML}invoke>\n",
        ),
        None,
        first=f"<{tags.DSML}function_calls>\n",
        last=f"</{tags.DSML}function_calls>",
        repeats=False,
    ),
    "minicpm": CallSyntax(
        listed_call('<function name="NAME">', _MINICPM_ARGUMENTS, "</function>"),
        None,
        between="\n",
    ),
    "kimi_k3": CallSyntax(
        _kimi_k3_call,
        None,
        first=f"{tags.KIMI_K3_OPEN}tools{tags.KIMI_K3_SEP}",
        last=f"{tags.KIMI_K3_CLOSE}tools{tags.KIMI_K3_SEP}",
        repeats=False,
    ),
    "functionary": CallSyntax(framed_call("NAME\n", ""), None, can_repeat=False),
    "functionary_v2": CallSyntax(
        framed_call(f"NAME\n{tags.RECIPIENT_CONTENT}", ""), None, can_repeat=False
    ),
    "llama4": CallSyntax(object_call("parameters"), None, can_repeat=False),
    "cohere": CallSyntax(
        _cohere_call,
        tags.COHERE_ACTION[0],
        "[",
        ", ",
        f"]{tags.COHERE_ACTION[1]}",
        repeats=False,
    ),
    "jamba": CallSyntax(
        object_call("arguments"),
        tags.JAMBA[0],
        "[",
        ", ",
        f"]{tags.JAMBA[1]}",
        repeats=False,
    ),
    "internlm": CallSyntax(
        object_call("parameters"),
        tags.INTERNLM_ACTION,
        first=f"{tags.INTERNLM[0]}\n",
        last=tags.INTERNLM[1],
        can_repeat=False,
    ),
    "muse": CallSyntax(
        listed_call('<atem:invoke name="NAME">\n', _MUSE_ARGUMENTS, "</atem:invoke>\n"),
        tags.ATEM[0],
        first="\n",
        last=tags.ATEM[1],
        repeats=False,
    ),
    "longcat": CallSyntax(
        listed_call("NAME\n", _LONGCAT_ARGUMENTS, tags.LONGCAT[1]),
        tags.LONGCAT[0],
        between="\n",
    ),
    "k2_horizon": CallSyntax(
        listed_call(
            f"{tags.IFM_CALL[0]}NAME\n", _K2_ARGUMENTS, f"{tags.IFM_CALL[1]}\n"
        ),
        tags.IFM_CALLS[0],
        first="\n",
        last=tags.IFM_CALLS[1],
        repeats=False,
    ),
    "glm": CallSyntax(
        listed_call("NAME\n", _GLM_ARGUMENTS, tags.HERMES[1]),
        tags.HERMES[0],
        between="\n",
    ),
    "llama3": CallSyntax(object_call("parameters"), None, can_repeat=False),
    "pythonic": CallSyntax(python_call, None, "[", ", ", "]", repeats=False),
    "lfm2": CallSyntax(
        python_call,
        tags.LFM_CALLS[0],
        "[",
        ", ",
        f"]{tags.LFM_CALLS[1]}",
        repeats=False,
    ),
    "mistral": CallSyntax(
        object_call("arguments"), tags.MISTRAL_CALLS, "[", ", ", "]", repeats=False
    ),
    "mistral_args": CallSyntax(
        framed_call(f"NAME{tags.MISTRAL_ARGS}", ""), tags.MISTRAL_CALLS
    ),
    "nemotron": CallSyntax(
        object_call("arguments"),
        tags.NEMOTRON[0],
        "[",
        ", ",
        f"]{tags.NEMOTRON[1]}",
        repeats=False,
    ),
    "phi": CallSyntax(
        object_call("arguments"),
        tags.PHI[0],
        "[",
        ", ",
        f"]{tags.PHI[1]}",
        repeats=False,
    ),
    "gemma": CallSyntax(_fenced_call, tags.GEMMA[0], first="\n", can_repeat=False),
    "gemma4": CallSyntax(
        listed_call("call:NAME{", _GEMMA4_ARGUMENTS, f"}}{tags.GEMMA4_CALL[1]}"),
        tags.GEMMA4_CALL[0],
    ),
    "deepseek": CallSyntax(
        framed_call(
            f"{tags.DEEPSEEK_CALL[0]}function{tags.DEEPSEEK_SEP}NAME{_FENCE}",
            f"\n```{tags.DEEPSEEK_CALL[1]}",
        ),
        tags.DEEPSEEK_CALLS[0],
        between="\n",
        last=tags.DEEPSEEK_CALLS[1],
        repeats=False,
    ),
    "deepseek_v31": CallSyntax(
        framed_call(
            f"{tags.DEEPSEEK_CALL[0]}NAME{tags.DEEPSEEK_SEP}", tags.DEEPSEEK_CALL[1]
        ),
        tags.DEEPSEEK_CALLS[0],
        last=tags.DEEPSEEK_CALLS[1],
        repeats=False,
    ),
    "kimi": CallSyntax(
        _kimi_call, tags.KIMI_CALLS[0], last=tags.KIMI_CALLS[1], repeats=False
    ),
    "function_tag": CallSyntax(
        framed_call("NAME>", tags.FUNCTION[1]), tags.FUNCTION[0], between="\n"
    ),
    "harmony": CallSyntax(
        framed_call(
            f"commentary to=functions.NAME {tags.CONSTRAIN}json{tags.MESSAGE}",
            tags.CALL,
        ),
        tags.CHANNEL,
        can_repeat=False,
    ),
    "json": CallSyntax(object_call("arguments"), None, can_repeat=False),
    **RARE,
}
