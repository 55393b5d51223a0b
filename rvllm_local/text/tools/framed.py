"""Families that set a call's name and its arguments between tags: Solar and PLaMo."""

from __future__ import annotations

from dataclasses import dataclass

from rvllm_local.text import tags
from rvllm_local.text.tools.json_calls import JSONReader
from rvllm_local.text.tools.json_strings import MAX_NAME
from rvllm_local.text.tools.reader import END, Reading


@dataclass(frozen=True, slots=True)
class Frame:
    """The tags of a call in their order; `strays` say nothing."""

    begin: str
    before_name: str
    after_name: str
    before_arguments: str
    after_arguments: str
    strays: tuple[str, ...]


SOLAR = Frame(
    begin=tags.SOLAR_CALL[0],
    before_name=tags.SOLAR_NAME,
    after_name=tags.SOLAR_ARGUMENTS,
    before_arguments="",
    after_arguments=tags.SOLAR_CALL[1],
    strays=tags.SOLAR_STRAYS,
)
PLAMO = Frame(
    begin=tags.PLAMO_CALL[0],
    before_name=tags.PLAMO_NAME[0],
    after_name=tags.PLAMO_NAME[1],
    before_arguments=tags.PLAMO_MESSAGE,
    after_arguments=tags.PLAMO_ARGUMENTS[1],
    strays=(*tags.PLAMO_CALLS, tags.PLAMO_CALL[1]),
)


class FramedParser(JSONReader):
    """A call is `begin id before_name name after_name {...} after_arguments`."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        super().__init__()

    def _parse(self) -> Reading[None]:
        frame = self._frame
        return self._tagged_calls(
            frame.begin, frame.after_arguments, frame.strays, self._body
        )

    def _body(self) -> Reading[None]:
        frame = self._frame
        yield from self._text_until((frame.before_name,), MAX_NAME)
        name, _ = yield from self._text_until((frame.after_name,), MAX_NAME)
        if frame.before_arguments:
            yield from self._text_until((frame.before_arguments,), MAX_NAME)
        self._start_call(name.strip())
        yield from self._object_arguments()
        first = yield from self._next_solid()
        if first != END:
            self._put_back(first)
            yield from self._expect(frame.after_arguments)
        self._end_call()
