"""How a call begins that has another form than the model's own, and where it ends.

It decides on text alone, so that no more of it is held back than may become a call.
"""

from __future__ import annotations

import re

from rvllm_local.text import tags
from rvllm_local.text.tools.whole_calls import FRAMES

FENCE = "```"
# Openings that prove themselves wherever they stand, and what closes them.
CLOSINGS: dict[str, str] = {
    **dict(FRAMES),
    tags.FUNCTION[0]: tags.FUNCTION[1],
    "<function>": "</function>",
    "<function name=": "</function>",
    "<invoke name=": "</invoke>",
    tags.IFM_CALL[0]: tags.IFM_CALL[1],
    "<｜｜DSML｜｜ calls>": "</｜｜DSML｜｜ calls>",
    tags.PYTHON_TAG: "",
    tags.MISTRAL_CALLS: "",
    "functools[": "",
}
# What a call may begin with where it has no tag: as a JSON object, and in a fence.
_KEYS = (
    "name", "function", "type", "id", "tool", "tool_name", "function_name", "action",
    "arguments", "parameters", "tool_calls", "calls",
)  # fmt: skip
_LANGUAGES = ("json", "tool_code", "tool_call", "tool_calls", "python", "xml", "")
FENCE_OPENED = re.compile(r"```([\w-]*)(\s*)", re.ASCII)
_BEHIND_NAME = re.compile(r"\s*(?:$|[({]|:\d*\s*(?:$|\{)|<(?:$|arg|ifm|a$|ar$|i$|if$))")
_QUOTES = "\"'"
_JOINTS = ",;`]})>"  # between calls, and behind the last one


def may_begin(text: str, names: tuple[str, ...]) -> bool:
    """True while a text without a tag begins as a call of one of `names` does."""
    if _agrees_with_tag(text):
        return True
    if text.startswith(FENCE):
        fence = FENCE_OPENED.match(text)
        if fence is None:
            return True
        language, blank = fence[1], fence[2]
        if not blank:
            return any(each.startswith(language) for each in _LANGUAGES)
        if language not in _LANGUAGES:
            return False
        text = text[fence.end() :]
    text = text.lstrip("[ \t\r\n")
    if not text or _agrees_with_tag(text):
        return True
    if text.startswith("{"):
        return _begins_object(text, names)
    return _begins_named(text, names)


def _begins_object(text: str, names: tuple[str, ...]) -> bool:
    key = text[1:].lstrip(" \t\r\n{").lstrip(_QUOTES)
    word = re.split(r"[\"'\s:]", key, maxsplit=1)[0]
    return _is_one_of(word, key, (*_KEYS, *names))


def _begins_named(text: str, names: tuple[str, ...]) -> bool:
    for namespace in ("print(", "functions.", "default_api.", "call:"):
        if text.startswith(namespace):
            text = text.removeprefix(namespace)
        elif namespace.startswith(text):
            return True
    word = re.split(r"[\s({<\[:]", text, maxsplit=1)[0]
    if _BEHIND_NAME.match(text, len(word)) is None:
        return False
    return _is_one_of(word, text, names)


def _is_one_of(word: str, text: str, words: tuple[str, ...]) -> bool:
    """True if a word is one of `words`; or may become one, where the text ends."""
    if word == text:
        return any(each.startswith(word) for each in words)
    return word in words


def _agrees_with_tag(text: str) -> bool:
    """True if the text and one of the tags begin alike, as far as they go."""
    for opening in CLOSINGS:
        if text.startswith(opening) or opening.startswith(text):
            return True
    return False


class Brackets:
    """Tells where a text without a closing tag goes on as no call does."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._num_open = 0
        self._quote = ""
        self._is_escaped = False
        self._has_opened = False
        self._word = ""  # behind the last bracket: the next call's name, perhaps
        self.are_left = False

    def add(self, char: str) -> None:
        if self._quote:
            self._in_string(char)
        elif char in "{[(":
            self._num_open += 1
            self._has_opened = True
            self._word = ""
        elif char in "}])":
            self._num_open -= 1
        elif self._num_open > 0:
            if char in _QUOTES:
                self._quote = char
        elif self._has_opened and char not in _JOINTS and not char.isspace():
            self._word += char
            begins_name = any(name.startswith(self._word) for name in self._names)
            self.are_left = not begins_name

    def _in_string(self, char: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif char == "\\":
            self._is_escaped = True
        elif char == self._quote:
            self._quote = ""
