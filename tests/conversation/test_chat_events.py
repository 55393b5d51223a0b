"""Events of a chat are read for Python: answer and thinking apart."""

from __future__ import annotations

from rvllm_local.conversation.chat_events import read_chat
from rvllm_local.conversation.collect import collect
from rvllm_local.conversation.output import OutputParser
from rvllm_local.types import FinishReason, StreamEvent


class Stream(list[StreamEvent]):
    """Events that have all come, as the engine's stream gives them."""

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def parser() -> OutputParser:
    return OutputParser(None, reasoning_start="<think>", reasoning_end="</think>")


def test_a_thought_that_nobody_opened_is_the_text_that_a_stream_has_shown() -> None:
    texts = ["Hm", "m.</thi", "nk>\n\nYe", "s."]
    events = Stream(StreamEvent(text, (1,), None) for text in texts)
    events[-1].finish_reason = FinishReason.STOP
    answers = collect(read_chat(events, 1, parser), 1)  # type: ignore[arg-type]
    assert [(answer.text, answer.reasoning) for answer in answers] == [
        ("Hmm.\n\nYes.", "")
    ]
