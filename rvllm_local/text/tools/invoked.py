"""Families whose calls are tags with a name and a tag for each parameter.

MiniMax M2, DeepSeek V3.2, MiniCPM and Muse write the same shape with other words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rvllm_local.text import tags
from rvllm_local.text.tools.json_strings import MAX_NAME
from rvllm_local.text.tools.parameters import ParameterReader, without_endings
from rvllm_local.text.tools.reader import (
    END,
    MAX_CALL_CHARS,
    MalformedCallError,
    Reading,
)

_ATTRIBUTE = re.compile(r"""([\w-]+)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""")


@dataclass(frozen=True, slots=True)
class InvokeWords:
    """The words of a family's tags, and the tags around a group of calls."""

    call: str
    parameter: str
    group: tuple[str, ...] = ()


MINIMAX = InvokeWords("invoke", "parameter", tags.MINIMAX)
DSML = InvokeWords(
    f"{tags.DSML}invoke",
    f"{tags.DSML}parameter",
    (
        f"<{tags.DSML}function_calls>",
        f"</{tags.DSML}function_calls>",
        f"<{tags.DSML}tool_calls>",  # of V4
        f"</{tags.DSML}tool_calls>",
    ),
)
GCML = InvokeWords(
    f"{tags.GCML}invoke",
    f"{tags.GCML}parameter",
    (f"<{tags.GCML}tool_calls>", f"</{tags.GCML}tool_calls>", tags.GIGACHAT_SEP),
)
DOTS = InvokeWords("invoke", "parameter", tags.DOTS)
MINICPM = InvokeWords("function", "param")
MUSE = InvokeWords("atem:invoke", "atem:parameter", tags.ATEM)
_HEADER = re.compile(r"\s*(?:t|to|to=[\w.-]*(?:<[|a-z]*>?)?)?")
_HEADER_END = re.compile(r"\s*to=[\w.-]+<\|message\|>")
_INVOKE = "invoke name="
_TAG_WORD = re.compile(r"\w{0,32}")
_CDATA = ("<![CDATA[", "]]>")  # around a value that could hold a tag


class InvokeParser(ParameterReader):
    """`<invoke name="f"><parameter name="key">value</parameter></invoke>`.

    A parameter may say with `string="true"` that its value is text. In the place of
    parameters there may be one JSON object.
    """

    def __init__(
        self, words: InvokeWords, tools: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self._words = words
        super().__init__(tools)

    def _parse(self) -> Reading[None]:
        opening = f"<{self._words.call} name="
        closing = f"</{self._words.call}>"
        group = self._words.group
        return self._tagged_calls(opening, closing, group, self._invoke)

    def _invoke(self) -> Reading[None]:
        name, _ = yield from self._text_until((">",), MAX_NAME)
        name = attributes(f"name={name}").get("name", "")
        first = yield from self._next_solid()
        self._put_back(first)
        if first == "{":
            self._start_call(name)
            yield from self._object_arguments()
            yield from self._call_closed(f"</{self._words.call}>", self._words.group)
            self._end_call()
            return
        self._open_arguments(name)
        while (yield from self._parameter()):
            pass
        self._close_arguments()

    def _parameter(self) -> Reading[bool]:
        """The next parameter; False if the call ends instead."""
        tag = yield from self._next_tag()
        if tag is None or tag.startswith("/"):  # models misspell it
            return False
        if f"<{tag}>" in self._words.group or tag.startswith(f"{self._words.call} "):
            self._put_back(f"<{tag}>")  # the next call, or the end of them all
            return False
        word, _, rest = tag.partition(" ")
        named = attributes(rest)
        if word != self._words.parameter or not named.get("name"):
            raise MalformedCallError(
                "it holds a tag that is neither a parameter nor the end"
            )
        closing = f"</{self._words.parameter}>"
        value = yield from self._value(closing)
        self._argument(named["name"], value, _said_to_be_text(named.get("string")))
        return True

    def _value(self, closing: str) -> Reading[str]:
        """A parameter's text up to its closing tag, which may also stand in CDATA."""
        words = self._words
        followers = (
            f"<{words.parameter} name=",
            f"<{words.call} name=",
            f"</{words.call[:-3]}",  # models misspell it
            *words.group,
        )
        opening_tag = re.compile(rf"<{words.parameter}>")
        value, tag = yield from self._closed_value(opening_tag, closing, followers)
        if tag == END:
            endings = (*self._words.group[1::2], f"</{self._words.call}>")
            value = without_endings(value, endings)
        opening, end = _CDATA
        if not value.lstrip().startswith(opening):
            return value.removeprefix("\n").removesuffix("\n")
        while not value.rstrip().endswith(end):
            more, _ = yield from self._text_until((closing,), MAX_CALL_CHARS)
            value += closing + more
        return value.strip().removeprefix(opening).removesuffix(end)


class DSMLParser(InvokeParser):
    """DeepSeek's calls; of the tags around them only the mark is spelled surely."""

    def __init__(self, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(DSML, tools)

    def _parse(self) -> Reading[None]:
        begin, end = f"<{tags.DSML}", f"</{tags.DSML}"
        while (tag := (yield from self._until((begin, end), self._content))) != END:
            parts: list[str] = []
            ending = yield from self._until((">",), parts.append, is_shown=False)
            head = "".join(parts)
            is_half = ending == END and self._is_cut
            if tag == begin and head.startswith(_INVOKE):
                self._put_back(head.removeprefix(_INVOKE) + ending)
                closings = (f"{end}invoke>",)
                yield from self._call(tag + head + ending, self._invoke(), closings)
            elif is_half or _TAG_WORD.fullmatch(head):
                self._space = ""
            else:
                for char in tag + head + ending:
                    self._content(char)
        self._flush_space()


class MuseParser(InvokeParser):
    """Muse's calls, before which the header of a message may stand: ` to=f<|message|>`."""

    def __init__(self, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(MUSE, tools)

    def _parse(self) -> Reading[None]:
        text, char = "", " "
        while char != END and _HEADER.fullmatch(text) and len(text) <= MAX_NAME:
            char = yield from self._next()
            text += char
        header = text.removesuffix(char)
        if _HEADER_END.fullmatch(header):
            text = char
        self._put_back(text)
        yield from super()._parse()


def attributes(text: str) -> dict[str, str]:
    """The attributes of a tag, with or without quotes around their values."""
    values = {}
    for match in _ATTRIBUTE.finditer(text):
        values[match[1]] = match[2] or match[3] or match[4] or ""
    return values


def _said_to_be_text(word: str | None) -> bool | None:
    return None if word is None else word == "true"
