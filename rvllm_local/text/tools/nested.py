"""MiniMax M3: calls whose arguments are nested tags, each after a mark of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rvllm_local.text import tags
from rvllm_local.text.tools.invoked import attributes
from rvllm_local.text.tools.json_calls import MAX_DEPTH
from rvllm_local.text.tools.json_strings import MAX_NAME
from rvllm_local.text.tools.parameters import ParameterReader, json_text, mapping
from rvllm_local.text.tools.reader import (
    MAX_CALL_CHARS,
    MalformedCallError,
    Reading,
)

_MARK = tags.MINIMAX_M3
_INVOKE, _INVOKE_END = f"{_MARK}<invoke name=", f"{_MARK}</invoke>"
_GROUP = (f"{_MARK}<tool_call>", f"{_MARK}</tool_call>")
_ITEM = "item"  # the tag of a member of a list
_EMPTY: Mapping[Any, Any] = {"array": [], "object": {}}


class MiniMaxM3Parser(ParameterReader):
    """`MARK<tool_call>MARK<invoke name="f">MARK<key>value MARK</key>MARK</invoke>...`.

    A call is read whole: only its end tells whether a tag holds tags.
    """

    def _parse(self) -> Reading[None]:
        return self._tagged_calls(_INVOKE, _INVOKE_END, _GROUP, self._invoke)

    def _invoke(self) -> Reading[None]:
        name, _ = yield from self._text_until((">",), MAX_NAME)
        body, _ = yield from self._text_until((_INVOKE_END,), MAX_CALL_CHARS)
        self._open_arguments(attributes(f"name={name}").get("name", ""))
        schema = {"properties": self._properties}
        for key, value in NestedTags(body).members(schema):
            self._member(key, json.dumps(value, ensure_ascii=False))
        self._close_arguments()


class NestedTags:
    """Reads what stands between the tags of a call."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def members(
        self, schema: Mapping[str, Any], depth: int = 0
    ) -> list[tuple[str, Any]]:
        """Keys and values up to a closing tag or the end.

        Raises `MalformedCallError` for tags that are not closed.
        """
        if depth > MAX_DEPTH:
            raise MalformedCallError(f"its arguments nest deeper than {MAX_DEPTH}")
        properties = mapping(schema.get("properties"))
        pairs = []
        while self._skip_to_opening():
            key = self._key()
            is_item = key == _ITEM and key not in properties
            part = schema.get("items") if is_item else properties.get(key)
            pairs.append((key, self._value(key, mapping(part), depth)))
        return pairs

    def _value(self, key: str, schema: Mapping[str, Any], depth: int) -> Any:
        closing = f"{_MARK}</{key}>"
        start = self._at
        if self._skip_to_opening():
            pairs = self.members(schema, depth + 1)
            value = _joined(pairs, schema)
        else:
            self._at = start
            end = self._text.find(_MARK, start)
            self._at = len(self._text) if end < 0 else end
            value = _leaf(self._text[start : self._at], schema)
        self._skip_blank()
        if not self._text.startswith(closing, self._at):
            raise MalformedCallError("a tag of it is not closed")
        self._at += len(closing)
        return value

    def _skip_to_opening(self) -> bool:
        """True at an opening tag; False at anything else."""
        self._skip_blank()
        is_tag = self._text.startswith(f"{_MARK}<", self._at)
        return is_tag and not self._text.startswith(f"{_MARK}</", self._at)

    def _key(self) -> str:
        start = self._at + len(_MARK) + 1
        end = self._text.find(">", start, start + MAX_NAME)
        if end < 0:
            raise MalformedCallError("a tag of it has no end")
        self._at = end + 1
        return self._text[start:end].strip()

    def _skip_blank(self) -> None:
        while self._text[self._at : self._at + 1].isspace():
            self._at += 1


def _joined(pairs: list[tuple[str, Any]], schema: Mapping[str, Any]) -> Any:
    """A list where every tag is an item, an object elsewhere."""
    is_list = all(key == _ITEM for key, _ in pairs)
    if is_list and schema.get("type") != "object":
        return [value for _, value in pairs]
    return dict(pairs)


def _leaf(text: str, schema: Mapping[str, Any]) -> Any:
    kind = schema.get("type")
    if not text.strip() and isinstance(kind, str) and kind in _EMPTY:
        return _EMPTY[kind]
    return json.loads(json_text(text, schema))
