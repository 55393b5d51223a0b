"""Kimi K3: an output in channels, whose calls hold one typed argument after another."""

from __future__ import annotations

from rvllm_local.text import tags
from rvllm_local.text.tools.invoked import attributes
from rvllm_local.text.tools.json_strings import MAX_NAME
from rvllm_local.text.tools.parameters import ParameterReader
from rvllm_local.text.tools.reader import (
    END,
    MAX_CALL_CHARS,
    MalformedCallError,
    Reading,
)

_OPEN, _CLOSE, _SEP = tags.KIMI_K3_OPEN, tags.KIMI_K3_CLOSE, tags.KIMI_K3_SEP
_CALL_END = f"{_CLOSE}call{_SEP}"
_ARGUMENT_END = f"{_CLOSE}argument{_SEP}"


class KimiK3Parser(ParameterReader):
    """`<|open|>call tool="f" index="1"<|sep|>`, then arguments, each
    `<|open|>argument key="k" type="string"<|sep|>text<|close|>argument<|sep|>`.

    The tags of other channels (response, tools, message) are dropped.
    """

    def _parse(self) -> Reading[None]:
        while True:
            tag = yield from self._until((_OPEN, _CLOSE), self._content)
            if tag == END:
                break
            head = yield from self._head()
            if tag == _OPEN and head.startswith("tools"):
                self._space = ""
            elif tag == _OPEN and head.startswith("call"):
                opening = tag + head + _SEP
                yield from self._call(opening, self._body(head), (_CALL_END,))
        self._flush_space()

    def _head(self) -> Reading[str]:
        """What stands before the separator; a tag that is cut off has less."""
        parts: list[str] = []

        def take(text: str) -> None:
            if len(parts) < MAX_NAME:
                parts.append(text)

        yield from self._until((_SEP,), take)
        return "".join(parts)

    def _body(self, head: str) -> Reading[None]:
        self._open_arguments(_plain(attributes(head).get("tool", "")))
        while (yield from self._one_argument()):
            pass
        self._close_arguments()

    def _one_argument(self) -> Reading[bool]:
        """The next argument; False if the call ends instead."""
        yield from self._expect_solid("<|")
        word, _ = yield from self._text_until(("|>",), MAX_NAME)
        head, _ = yield from self._text_until((_SEP,), MAX_NAME)
        if word == "close" and head.strip() == "call":
            return False
        named = attributes(head)
        if word != "open" or not head.startswith("argument") or "key" not in named:
            raise MalformedCallError("it holds a tag that is no argument")
        value, _ = yield from self._text_until((_ARGUMENT_END,), MAX_CALL_CHARS)
        self._argument(_plain(named["key"]), value, _is_text(named.get("type")))
        return True


def _is_text(kind: str | None) -> bool | None:
    return None if kind is None else kind == "string"


def _plain(text: str) -> str:
    """An attribute's value without the two escapes that it may have."""
    return text.replace("&quot;", '"').replace("&amp;", "&")
