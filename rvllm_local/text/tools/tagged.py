"""Families that set a call's JSON between tags: Hermes, Mistral, Kimi and others."""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Callable

from rvllm_local.text import tags
from rvllm_local.text.tools.json_calls import JSONReader
from rvllm_local.text.tools.json_strings import MAX_NAME
from rvllm_local.text.tools.python_calls import python_object
from rvllm_local.text.tools.reader import (
    END,
    MAX_CALL_CHARS,
    MalformedCallError,
    Reading,
)

# A fence around a call's JSON, as far as it is read.
_FENCE = re.compile(r"`{1,2}|```(?:j|js|jso|json)?\s{0,64}")


class HermesParser(JSONReader):
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, as Hermes, Qwen 2.5 and Qwen 3 write it.

    At the end of the output the closing tag may be missing; one without a call before it is dropped.
    """

    def _parse(self) -> Reading[None]:
        opening, closing = tags.HERMES
        while True:
            tag = yield from self._until((opening, closing), self._content)
            if tag == END:
                break
            if tag == opening:
                yield from self._block(tag, closing)
        self._flush_space()

    def _block(self, opening: str, closing: str) -> Reading[None]:
        """The calls up to the closing tag: one, or several with or without a list."""
        self._has_more = True
        while self._has_more:
            self._has_more = False
            fence = ""
            first = yield from self._next_solid()
            if first == END and not opening:
                return  # a comma, and nothing after it
            while first not in ("{", "[", END) and _FENCE.fullmatch(fence + first):
                fence += first
                first = yield from self._next()
            opening += fence
            if first == "[":
                opening += first
                first = yield from self._next_solid()
            self._put_back(first)
            body = self._body(closing)
            yield from self._call(opening + first, body, (closing,))
            opening = ""

    def _body(self, closing: str) -> Reading[None]:
        brace = yield from self._next_solid()
        second = yield from self._next_solid()
        if brace + second == "{'":
            yield from self._python_object(closing)
            return
        if brace != "{":
            raise MalformedCallError("it is no object")
        is_doubled = second == "{"  # as in the template that explained the form
        if not is_doubled:
            self._put_back(second)
        yield from self._json_call(opened=True)
        if is_doubled:
            yield from self._expect_solid("}")
        first = yield from self._next_solid()
        while first and first in "]}`":
            first = yield from self._next_solid()
        self._has_more = first in (",", ";", "{")
        if first not in (",", ";"):
            self._put_back(first)
        if not self._has_more:
            yield from self._call_closed(closing, tags.HERMES[:1])
        self._end_call()

    def _python_object(self, closing: str) -> Reading[None]:
        """An object in Python's spelling, which some models write; it is read whole."""
        code, _ = yield from self._text_until((closing,), MAX_CALL_CHARS)
        name, arguments = python_object("{'" + code)
        if len(name) > MAX_NAME:
            raise MalformedCallError(f"its name is longer than {MAX_NAME} characters")
        self._start_call(name)
        self._arguments(arguments)
        self._end_call()


class ListParser(JSONReader):
    """A list of calls after a tag, or calls one after another: Nemotron, Phi, Granite.

    `tags` are the opening tag and the closing one, which may be missing; `strays` are
    further ones that say nothing.
    """

    def __init__(
        self,
        tags: tuple[str, str],
        strays: tuple[str, ...] = (),
        new_call_id: Callable[[], str] | None = None,
    ) -> None:
        self._opening, self._closing = tags
        self._strays = strays
        super().__init__(new_call_id)

    def _parse(self) -> Reading[None]:
        stray = (self._closing, *self._strays)
        while True:
            tag = yield from self._until((self._opening, *stray), self._content)
            if tag == END:
                break
            if tag == self._opening:
                yield from self._calls(tag)
        self._flush_space()

    def _calls(self, tag: str) -> Reading[None]:
        first = yield from self._next_solid()
        if first == "[":
            yield from self._list(tag + first)
            return
        while tag or first == "{":
            self._put_back(first)
            yield from self._call(tag + first, self._object(), (self._closing,))
            tag = ""
            first = yield from self._next_solid()
        self._put_back(first)

    def _list(self, opening: str) -> Reading[None]:
        separator = ","
        while separator in (",", "{"):
            if separator == "{":
                self._put_back(separator)  # a comma was forgotten
            first = yield from self._next_solid()
            if first == "]" or (first == END and not opening):
                return
            self._put_back(first)
            yield from self._call(opening + first, self._object(), ())
            opening = ""
            separator = yield from self._next_solid()
        if separator != "]":
            self._put_back(separator)

    def _object(self) -> Reading[None]:
        yield from self._json_call()
        self._end_call()


class MistralParser(ListParser):
    """`[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]`, and the later
    `[TOOL_CALLS]name[ARGS]{...}`.
    """

    def __init__(self, new_call_id: Callable[[], str] | None = None) -> None:
        pair = (tags.MISTRAL_CALLS, tags.MISTRAL_ARGS)
        super().__init__(pair, (), new_call_id or _nine_characters)

    def _parse(self) -> Reading[None]:
        stray = (tags.MISTRAL_ARGS, tags.MISTRAL_ID)
        while True:
            tag = yield from self._until((tags.MISTRAL_CALLS, *stray), self._content)
            if tag == END:
                break
            if tag in stray:
                continue
            first = yield from self._next_solid()
            if first == "[":
                yield from self._list(tag + first)
            else:
                self._put_back(first)
                body = self._object() if first == "{" else self._named()
                yield from self._call(tag + first, body, ())
        self._flush_space()

    def _named(self) -> Reading[None]:
        name, tag = yield from self._text_until(
            (tags.MISTRAL_ARGS, tags.MISTRAL_ID, "{"), MAX_NAME
        )
        if tag == tags.MISTRAL_ID:
            _, tag = yield from self._text_until((tags.MISTRAL_ARGS, "{"), MAX_NAME)
        self._start_call(name.strip())
        if tag == "{":
            self._put_back(tag)
        yield from self._optional_arguments()
        self._end_call()


class KimiParser(JSONReader):
    """`<|tool_call_begin|>functions.name:0<|tool_call_argument_begin|>{...}` and its end.

    What stands before the arguments is also the call's id, by which the template finds
    its result.
    """

    def _parse(self) -> Reading[None]:
        begin, end = tags.KIMI_CALL
        strays = (*tags.KIMI_CALLS, tags.KIMI_ARGUMENTS)
        return self._tagged_calls(begin, end, strays, lambda: self._body(end))

    def _body(self, end: str) -> Reading[None]:
        head, tag = yield from self._text_until((tags.KIMI_ARGUMENTS, "{"), MAX_NAME)
        if tag == "{":
            self._put_back(tag)
        call_id = head.strip()
        name, colon, number = call_id.removeprefix("functions.").rpartition(":")
        if not colon or not number.isdecimal():
            name, call_id = call_id, ""
        self._start_call(name, call_id)
        yield from self._optional_arguments()
        yield from self._call_closed(end, (tags.KIMI_CALL[0], tags.KIMI_CALLS[1]))
        self._end_call()


class FunctionTagParser(JSONReader):
    """`<function=name>{...}</function>`, as functionary and Llama 3.1 write it."""

    def _parse(self) -> Reading[None]:
        opening, closing = tags.FUNCTION
        while True:
            tag = yield from self._until((opening, closing), self._content)
            if tag == END:
                break
            if tag == opening:
                yield from self._call(tag, self._body(closing), (closing,))
        self._flush_space()

    def _body(self, closing: str) -> Reading[None]:
        name, _ = yield from self._text_until((">",), MAX_NAME)
        self._start_call(name.strip())
        yield from self._optional_arguments()
        yield from self._call_closed(closing, tags.FUNCTION[:1])
        self._end_call()


class DeepSeekParser(JSONReader):
    """`<｜tool▁call▁begin｜>function<｜tool▁sep｜>name`, a fenced JSON and `<｜tool▁call▁end｜>`, as V3 and R1 write it;
    or `<｜tool▁call▁begin｜>name<｜tool▁sep｜>{...}<｜tool▁call▁end｜>`, as V3.1 does.
    """

    def _parse(self) -> Reading[None]:
        begin, end = tags.DEEPSEEK_CALL
        strays = (*tags.DEEPSEEK_CALLS, tags.DEEPSEEK_SEP)
        return self._tagged_calls(begin, end, strays, lambda: self._body(end))

    def _body(self, end: str) -> Reading[None]:
        name = yield from self._name_before(tags.DEEPSEEK_SEP)
        if name.strip() == "function":
            name = yield from self._name_before("\n")
        first = yield from self._next_solid()
        self._put_back(first)
        if first == "`":  # a fence, which V3.1 does without
            yield from self._expect("```")
            language, _ = yield from self._text_until(("{",), MAX_NAME)
            if language.strip() not in ("", "json"):
                raise MalformedCallError("its fence holds no JSON")
            self._put_back("{")
        elif first == "j":  # a fence's language without the fence
            yield from self._expect("json")
        self._start_call(name.strip())
        yield from self._object_arguments()
        others = (tags.DEEPSEEK_CALL[0], tags.DEEPSEEK_CALLS[1])
        yield from self._call_closed(end, others)
        self._end_call()

    def _name_before(self, separator: str) -> Reading[str]:
        """What stands before a separator, within this call."""
        ends = (tags.DEEPSEEK_CALL[1], tags.DEEPSEEK_CALLS[1])
        name, tag = yield from self._text_until((separator, *ends), MAX_NAME)
        if tag != separator:
            raise MalformedCallError("it ends before its arguments")
        return name


def _nine_characters() -> str:
    """The only call ids that Mistral's templates take."""
    return "".join(
        secrets.choice(string.ascii_letters + string.digits) for _ in range(9)
    )
