"""Holds a call of the model's own form back until it is clear what it calls."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from rvllm_local.text import tags
from rvllm_local.text.tools.pieces import (
    Piece,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallFailed,
    ToolCallStart,
)
from rvllm_local.text.tools.signatures import (
    WRAPPERS,
    Signature,
    is_call_id,
    offered_name,
    tool_by_keys,
    unwrapped,
)

_FIRST_KEY = re.compile(r'\s*\{\s*(?:"((?:[^"\\]|\\.)*)"\s*:|\})')
# What stands before arguments, and behind them.
_BEFORE = (tags.MESSAGE, tags.KIMI_ARGUMENTS, tags.MISTRAL_ARGS)
_BEHIND = (
    tags.CALL,
    tags.END_MESSAGE,
    tags.RETURN,
    tags.KIMI_CALL[1],
    tags.KIMI_CALLS[1],
)


class HeldCall:
    """One call. Arguments pass as they come once their first key proves them.

    Those of a tool that nobody offered, and those with a key too many around them,
    are read whole first. `pieces` are what is known of the call so far.
    """

    def __init__(
        self, index: int, start: ToolCallStart, signatures: Mapping[str, Signature]
    ) -> None:
        self._index, self._call_id = index, start.call_id
        self._signatures = signatures
        self._name = offered_name(start.name, frozenset(signatures)) or start.name
        self._arguments = ""
        self.is_open = False  # its start is out

    def add(self, arguments: str) -> list[Piece]:
        if self.is_open:
            return [ToolCallDelta(self._index, arguments)]
        self._arguments += arguments
        first_key = _FIRST_KEY.match(self._arguments)
        if first_key is None or self._is_doubtful(first_key[1]):
            return []
        return self._opened()

    def _is_doubtful(self, key: str | None) -> bool:
        tool = self._signatures.get(self._name)
        if tool is None:
            return True
        return key in WRAPPERS and key not in tool.properties

    def _opened(self) -> list[Piece]:
        self.is_open = True
        pieces: list[Piece] = [ToolCallStart(self._index, self._call_id, self._name)]
        if self._arguments:
            pieces.append(ToolCallDelta(self._index, self._arguments))
        return pieces

    def ended(self) -> list[Piece]:
        """What is left of a call that is complete."""
        pieces: list[Piece] = []
        if not self.is_open:
            self._mend()
            pieces = self._opened()
        return [*pieces, ToolCallEnd(self._index)]

    def _mend(self) -> None:
        """Find out what a call means whose name or arguments are in doubt."""
        arguments = json.loads(self._arguments)
        if self._name not in self._signatures:
            tool, arguments = self._meant(arguments)
            self._name = tool or self._name
        signature = self._signatures.get(self._name)
        if signature is not None:
            arguments = unwrapped(arguments, signature)
            self._arguments = json.dumps(arguments, ensure_ascii=False)

    def _meant(self, arguments: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """The tool of a call that has an id for a name, and its arguments."""
        if not is_call_id(self._name):
            return None, arguments
        name = arguments.get("name")
        if isinstance(name, str):
            tool = offered_name(name, frozenset(self._signatures))
            if tool is not None and "name" not in self._signatures[tool].properties:
                rest = {key: arguments[key] for key in arguments if key != "name"}
                return tool, rest
        return tool_by_keys(arguments, self._signatures), arguments

    def failed(self, raw: str, reason: str) -> list[Piece]:
        """A call that could not be read; nothing where its start is not out."""
        if not self.is_open:
            return []
        return [ToolCallFailed(self._index, raw, reason)]

    def with_plain_text(self, raw: str) -> tuple[str, str] | None:
        """The call, if its arguments are the text of the one that the tool must have."""
        tool = self._signatures.get(self._name)
        if tool is None or self._arguments:
            return None
        for before in _BEFORE:
            _, mark, text = raw.rpartition(before)
            if mark:
                arguments = tool.plain(_without_end(text))
                if arguments is not None:
                    return self._name, json.dumps(arguments, ensure_ascii=False)
        return None


def _without_end(text: str) -> str:
    for ending in _BEHIND:
        text = text.removesuffix(ending)
    return text
