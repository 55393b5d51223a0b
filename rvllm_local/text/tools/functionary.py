"""Functionary: every message goes to a recipient, which is "all" or a tool."""

from __future__ import annotations

import re
from collections.abc import Callable

from rvllm_local.text import tags
from rvllm_local.text.tools.json_calls import JSONReader
from rvllm_local.text.tools.json_strings import MAX_NAME
from rvllm_local.text.tools.reader import END, Reading

_NAME = re.compile(r"[\w.-]+")
_EVERYBODY = "all"


class FunctionaryParser(JSONReader):
    """`>>>all` and text, `>>>name` and the arguments as JSON, each on lines of their own.

    The prompt ends with the first mark. What begins otherwise is an answer.
    """

    def _parse(self) -> Reading[None]:
        tag: str = tags.FUNCTIONARY
        is_first = True
        while tag != END:
            yield from self._message(is_first)
            is_first = False
            tag = yield from self._until((tags.FUNCTIONARY,), self._content)
        self._flush_space()

    def _message(self, is_first: bool) -> Reading[None]:
        """What comes up to the next mark, unless it is plain text."""
        name, end = yield from self._line(is_first)
        if name == _EVERYBODY and end == "\n":
            return
        if end == END and self._is_cut:
            return  # it may have become a recipient
        if _NAME.fullmatch(name) and end == "\n":
            first = yield from self._next_solid()
            self._put_back(first)
            if first == END and self._is_cut:
                return
            if first == "{":
                opening = f"{tags.FUNCTIONARY}{name}\n{first}"
                body = self._arguments_of(name)
                yield from self._call(opening, body, (tags.FUNCTIONARY,))
                return
        for char in name + end:
            self._content(char)

    def _line(self, is_first: bool) -> Reading[tuple[str, str]]:
        """A name, as far as it is one, and the character after it."""
        text = ""
        while True:
            char = yield from self._next()
            if is_first and not text and char == ">":
                continue  # a mark that the prompt has not written
            is_name = char != END and (_NAME.fullmatch(char) is not None)
            if not is_name or len(text) >= MAX_NAME:
                return text, char
            text += char

    def _arguments_of(self, name: str) -> Reading[None]:
        self._start_call(name)
        yield from self._object_arguments()
        self._end_call()


class RecipientParser(JSONReader):
    """`name`, `<|content|>` and the arguments, as functionary's second version writes it.

    The prompt ends with `<|recipient|>`; later messages begin with their sender.
    """

    def _parse(self) -> Reading[None]:
        every = (tags.SENDER, tags.RECIPIENT, tags.RECIPIENT_CONTENT)
        tag: str = tags.RECIPIENT
        while tag != END:
            if tag == tags.SENDER:
                self._space = ""
                tag = yield from self._until((tags.RECIPIENT,), _drop)
            elif tag == tags.RECIPIENT:
                tag = yield from self._message()
            else:
                tag = yield from self._until(every, self._content)
        self._flush_space()

    def _message(self) -> Reading[str]:
        """A call, or the head of a text; returns the tag that ended it."""
        name = ""
        while _NAME.fullmatch(char := (yield from self._next())):
            name += char
            if len(name) > MAX_NAME:
                break
        if char == "<":
            self._put_back(char)
        elif char == END and self._is_cut:
            return END
        elif char != "\n":
            for held in name + char:
                self._content(held)
            return tags.RECIPIENT_CONTENT
        blank: list[str] = []
        every = (tags.SENDER, tags.RECIPIENT, tags.RECIPIENT_CONTENT)
        tag = yield from self._until(every, self._content_after(name, blank))
        if tag != tags.RECIPIENT_CONTENT or blank or not name:
            return tag
        if name != _EVERYBODY:
            opening = f"{tags.RECIPIENT}{name}\n{tag}"
            yield from self._call(opening, self._arguments_of(name), (tags.SENDER,))
        return tag

    def _content_after(self, name: str, said: list[str]) -> Callable[[str], None]:
        """Takes text that shows that a name was no recipient."""

        def take(text: str) -> None:
            if not said:
                for held in f"{name}\n":
                    self._content(held)
            said.append(text)
            self._content(text)

        return take

    def _arguments_of(self, name: str) -> Reading[None]:
        self._start_call(name)
        yield from self._object_arguments()
        self._end_call()


def _drop(_: str) -> None:
    pass
