"""Apertus: a list of objects whose only key is the tool's name."""

from __future__ import annotations

from rvllm_local.text import tags
from rvllm_local.text.tools.json_strings import MAX_NAME
from rvllm_local.text.tools.reader import MalformedCallError, Reading
from rvllm_local.text.tools.tagged import ListParser


class KeyedParser(ListParser):
    """`<|tools_prefix|>[{"f": {"a": 1}}, {"g": {}}]<|tools_suffix|>`."""

    def __init__(self) -> None:
        super().__init__(tags.APERTUS)

    def _object(self) -> Reading[None]:
        yield from self._expect_solid("{")
        name = yield from self._text_value("name", MAX_NAME)
        yield from self._expect_solid(":")
        self._start_call(name)
        yield from self._object_arguments()
        closing = yield from self._next_solid()
        if closing != "}":
            raise MalformedCallError("an object of it has more than one key")
        self._end_call()
