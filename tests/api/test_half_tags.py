"""A limit within a tag or a stop string: nothing of it is shown, and the reason tells why.

In every dialect, whole and streamed. Tags are spelled in letters, so that limits of a few
tokens end within them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rvllm_local.engine.detokenizer import StreamingDetokenizer
from rvllm_local.models.locate import ModelFiles
from rvllm_local.text.tokenizer_files import read_tokenizer
from rvllm_local.types import FinishReason, Request, StreamEvent
from tests.support.api import Running, served
from tests.support.scripted import ScriptedClient
from tests.support.wire import WEATHER

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
QUESTION = [{"role": "user", "content": "Is the sea salty?"}]
THOUGHT = "<think>ab</think>Yes."
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
STOP = "STOP!!!"
LIMITS = range(1, 7)


class SpellingEngine(ScriptedClient):
    """Says `text` letter by letter, and knows stop strings as the engine does."""

    text = ""

    def _events(self, request: Request) -> list[StreamEvent]:
        letters = [self._tokenizer.encode(letter, bos=False) for letter in self.text]
        tokens = [token for (token,) in letters]
        detokenizer = StreamingDetokenizer(self._tokenizer, request.params.stop_strings)
        events = []
        for token in tokens[: request.params.max_tokens]:
            text = detokenizer.push(token)
            events.append(StreamEvent(text, (token,), None, index=request.index))
        events[-1].finish_reason = FinishReason.LENGTH
        events[-1].text += detokenizer.finish(FinishReason.LENGTH)
        return events


@pytest.fixture(scope="module")
def playing(tiny: Path) -> Iterator[tuple[Running, SpellingEngine]]:
    engine = SpellingEngine(read_tokenizer(ModelFiles("folder", tiny, "tiny")))
    with served({"tiny": tiny}, opener=lambda files, options: engine) as running:
        yield running, engine


def body(path: str, limit: int, is_stream: bool) -> dict[str, Any]:
    """A question with a tool and, where the dialect has them, a stop string."""
    fields: dict[str, Any] = {"model": "tiny", "stream": is_stream}
    if path == RESPONSES:
        tool = {"type": "function", **WEATHER}
        return {
            **fields,
            "input": "Is it salty?",
            "max_output_tokens": limit,
            "tools": [tool],
        }
    fields["max_tokens"] = limit
    if path == TEXT:
        return {**fields, "prompt": "Is it salty?", "stop": [STOP]}
    fields["messages"] = QUESTION
    if path == CHAT:
        tool = {"type": "function", "function": WEATHER}
        return {**fields, "stop": [STOP], "tools": [tool]}
    tool = {"name": "weather", "input_schema": WEATHER["parameters"]}
    return {**fields, "stop_sequences": [STOP], "tools": [tool]}


def shown(path: str, answer: dict[str, Any]) -> tuple[str, str, str]:
    """The content, the thoughts and the reason of a whole answer."""
    if path == TEXT:
        choice = answer["choices"][0]
        return choice["text"], "", choice["finish_reason"]
    if path == CHAT:
        choice = answer["choices"][0]
        message = choice["message"]
        thought = message.get("reasoning_content", "")
        return message["content"] or "", thought, choice["finish_reason"]
    kinds = {"text": "", "thinking": "", "message": "", "reasoning": ""}
    if path == MESSAGES:
        for block in answer["content"]:
            kinds[block["type"]] += block[block["type"]]
        return kinds["text"], kinds["thinking"], answer["stop_reason"]
    for item in answer["output"]:
        kinds[item["type"]] += "".join(part["text"] for part in item["content"])
    reason = answer["incomplete_details"]["reason"]
    return kinds["message"], kinds["reasoning"], reason


def streamed(path: str, events: list[dict[str, Any]]) -> tuple[str, str, str]:
    """The same of a stream's events."""
    content = thought = reason = ""
    for event in events:
        if path == RESPONSES:
            kind = event["type"].removeprefix("response.")
            content += event["delta"] if kind == "output_text.delta" else ""
            thought += event["delta"] if kind == "reasoning_text.delta" else ""
            if kind == "incomplete":
                assert shown(path, event["response"])[:2] == (content, thought)
                reason = event["response"]["incomplete_details"]["reason"]
        elif path == MESSAGES:
            delta = event.get("delta", {})
            content += delta.get("text", "")
            thought += delta.get("thinking", "")
            reason = delta.get("stop_reason", reason)
        else:
            choice = event["choices"][0]
            delta = choice.get("delta", choice)
            content += delta.get("content", delta.get("text", ""))
            thought += delta.get("reasoning_content", "")
            reason = choice["finish_reason"] or reason
    return content, thought, reason


def ask(
    running: Running, path: str, limit: int, is_stream: bool
) -> tuple[str, str, str]:
    answer = running.post(body(path, limit, is_stream), path)
    assert answer.status_code == 200, answer.text
    if not is_stream:
        return shown(path, answer.json())
    rows = [line for line in answer.text.splitlines() if line.startswith("data: {")]
    return streamed(path, [json.loads(row.removeprefix("data: ")) for row in rows])


REASONS = {
    CHAT: "length",
    TEXT: "length",
    RESPONSES: "max_output_tokens",
    MESSAGES: "max_tokens",
}
CASES = [
    *[(THOUGHT, path) for path in (CHAT, RESPONSES, MESSAGES)],
    *[(CALL, path) for path in (CHAT, RESPONSES, MESSAGES)],
    *[(STOP, path) for path in (CHAT, TEXT, MESSAGES)],
]


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("text", "path"), CASES)
def test_a_tag_that_a_limit_cut_is_not_shown(
    text: str,
    path: str,
    is_stream: bool,
    playing: tuple[Running, SpellingEngine],
) -> None:
    running, engine = playing
    engine.text = text
    for limit in LIMITS:
        answer = ask(running, path, limit, is_stream)
        assert answer == ("", "", REASONS[path])


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
def test_the_end_tag_of_a_thought_is_not_shown(
    path: str, is_stream: bool, playing: tuple[Running, SpellingEngine]
) -> None:
    running, engine = playing
    engine.text = THOUGHT
    before = THOUGHT.index("</think>")
    for limit in LIMITS:
        answer = ask(running, path, before + limit, is_stream)
        assert answer == ("", "ab", REASONS[path])


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
def test_a_call_behind_text_is_not_shown(
    path: str, is_stream: bool, playing: tuple[Running, SpellingEngine]
) -> None:
    running, engine = playing
    engine.text = f"Wait.{CALL}"
    for limit in LIMITS:
        answer = ask(running, path, len("Wait.") + limit, is_stream)
        assert answer == ("Wait.", "", REASONS[path])


def test_the_engine_itself_holds_a_stop_string_back(api: Running) -> None:
    for limit in LIMITS:
        fields = {"guided_regex": STOP, "stop": [STOP], "max_tokens": limit}
        answer = api.post({"prompt": "x", **fields}, TEXT).json()
        assert shown(TEXT, answer) == ("", "", "length")
