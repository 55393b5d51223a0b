"""gpt-oss's messages: analysis is reasoning, final is content, and commentary to a function is a call."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rvllm_local.text import tags
from rvllm_local.text.tools.json_calls import JSONReader
from rvllm_local.text.tools.parameters import schemas_of
from rvllm_local.text.tools.reader import END, Reading

MAX_HEADER = 512
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_FUNCTIONS = "functions."
_READERS = frozenset({"all", "assistant", "user"})  # recipients that are no tools
_ENDS = (tags.END_MESSAGE, tags.CALL, tags.RETURN, tags.START)
_HEADER_TAGS = (tags.MESSAGE, tags.CHANNEL, tags.CONSTRAIN, *_ENDS)


class HarmonyParser(JSONReader):
    """`<|channel|>NAME to=functions.x <|constrain|>json<|message|>TEXT<|end|>`, one message after another.

    The prompt ends with the role, so a header may go on at once (` to=functions.x<|channel|>...`). Text outside
    of any message is content. The last message may lack its end, which is often the end of the output.
    A tool's name may stand in a header without the words before it.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        self._names = schemas_of(tools).keys()
        super().__init__()

    def _parse(self) -> Reading[None]:
        header = yield from self._first_header()
        while True:
            tag = yield from self._until(_HEADER_TAGS, self._content)
            if tag == END:
                break
            while tag in (tags.CHANNEL, tags.START):
                header, tag = yield from self._header(header, tag)
                if tag == tags.MESSAGE:
                    tag = yield from self._message(header)
                    header = ""
        self._flush_space()

    def _first_header(self) -> Reading[str]:
        """A recipient before the first tag, or nothing; all other text is content."""
        text = ""
        while "to=".startswith(text.lstrip(" ")[:3]) and len(text) < MAX_HEADER:
            char = yield from self._next()
            if char == END and self._is_cut:
                return ""
            if char in (END, "<"):
                self._put_back(char)
                if char == "<" and text.lstrip(" ").startswith("to="):
                    return " " + text.lstrip(" ")
                break
            text += char
        for char in text:
            self._content(char)
        return ""

    def _header(self, header: str, tag: str) -> Reading[tuple[str, str]]:
        """What stands before `<|message|>`, in one line; and the tag that ended it."""
        parts = [header if tag == tags.CHANNEL else "", f" {tag} "]
        length = 0

        def take(text: str) -> None:
            nonlocal length
            length += 1
            if length <= MAX_HEADER:
                parts.append(text)

        while (tag := (yield from self._until(_HEADER_TAGS, take))) in (
            tags.CHANNEL,
            tags.CONSTRAIN,
        ):
            parts.append(f" {tag} ")
        return "".join(parts), tag

    def _message(self, header: str) -> Reading[str]:
        """The text of a message; returns the tag that ended it."""
        channel = header.partition(tags.CHANNEL)[2].split()
        is_analysis = channel[:1] == ["analysis"]
        recipient = _tool_in(header, is_analysis) or self._name_in(header)
        if recipient is not None:
            name = recipient.removeprefix(_FUNCTIONS)
            yield from self._call(
                header.strip() + tags.MESSAGE,
                self._body(name),
                (tags.CALL, tags.END_MESSAGE),
            )
            return tags.END_MESSAGE
        take = self._reasoning if is_analysis else self._content
        tag = yield from self._until((*_ENDS, tags.CHANNEL), take)
        if take == self._content:
            self._flush_space()
        return tag

    def _name_in(self, header: str) -> str | None:
        """A tool's name in the place of a channel, beside the channel of calls."""
        words = header.split()
        if "commentary" not in words:
            return None
        names = [word for word in words if word in self._names]
        return names[0] if names else None

    def _body(self, name: str) -> Reading[None]:
        self._start_call(name)
        first = yield from self._next_solid()
        if first != "[":  # around the one object, at times
            self._put_back(first)
        yield from self._optional_arguments()
        yield from self._call_closed(tags.CALL, (*_ENDS, tags.CHANNEL))
        self._end_call()


def _tool_in(header: str, is_analysis: bool) -> str | None:
    """The tool that a message goes to.

    What the model tells tools of its own, in the analysis, is part of its thinking.
    """
    match = _RECIPIENT.search(header)
    if match is None or match[1] in _READERS:
        return None
    if is_analysis and not match[1].startswith(_FUNCTIONS):
        return None
    return match[1]
