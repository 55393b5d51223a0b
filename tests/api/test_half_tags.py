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
OLLAMA, GENERATE = "/api/chat", "/api/generate"
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
    if path in (OLLAMA, GENERATE):
        fields["options"] = {"num_predict": limit, "stop": [STOP]}
        if path == GENERATE:
            return {**fields, "prompt": "Is it salty?", "think": True}
        tool = {"type": "function", "function": WEATHER}
        return {**fields, "messages": QUESTION, "tools": [tool]}
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
    if path in (OLLAMA, GENERATE):
        return streamed(path, [answer])
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
        if path in (OLLAMA, GENERATE):
            message = event.get("message", event)
            content += message.get("content", message.get("response", ""))
            thought += message.get("thinking", "")
            reason = event.get("done_reason", reason)
            assert "tool_calls" not in message
        elif path == RESPONSES:
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
    if path in (OLLAMA, GENERATE):
        return streamed(path, [json.loads(row) for row in answer.text.splitlines()])
    rows = [line for line in answer.text.splitlines() if line.startswith("data: {")]
    return streamed(path, [json.loads(row.removeprefix("data: ")) for row in rows])


REASONS = {
    CHAT: "length",
    TEXT: "length",
    RESPONSES: "max_output_tokens",
    MESSAGES: "max_tokens",
    OLLAMA: "length",
    GENERATE: "length",
}
WITH_TOOLS = (CHAT, RESPONSES, MESSAGES, OLLAMA)
CASES = [
    *[(THOUGHT, path) for path in (*WITH_TOOLS, GENERATE)],
    *[(CALL, path) for path in WITH_TOOLS],
    *[(STOP, path) for path in (CHAT, TEXT, MESSAGES, OLLAMA, GENERATE)],
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
@pytest.mark.parametrize("path", [*WITH_TOOLS, GENERATE])
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
@pytest.mark.parametrize("path", WITH_TOOLS)
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


@pytest.mark.parametrize("path", [CHAT, MESSAGES, OLLAMA])
def test_half_a_call_is_no_call_of_a_whole_answer(
    path: str, playing: tuple[Running, SpellingEngine]
) -> None:
    running, engine = playing
    engine.text = CALL
    within_arguments = CALL.index("Rome") + 2
    answer = running.post(body(path, within_arguments, False), path).json()
    if path == CHAT:
        assert "tool_calls" not in answer["choices"][0]["message"]
    if path == MESSAGES:
        assert answer["content"] == [{"type": "text", "text": ""}]
    assert shown(path, answer) == ("", "", REASONS[path])


@pytest.mark.parametrize(
    ("path", "fields", "name"),
    [
        (MESSAGES, {"stop_sequences": ["x"] * 70}, "stop_sequences has 70 strings"),
        (OLLAMA, {"options": {"temperature": -1}}, "options.temperature must be"),
        (OLLAMA, {"options": {"mirostat": 2}}, "options.mirostat is not supported"),
        (
            RESPONSES,
            {"text": {"format": {"type": "json_schema"}}},
            "text.format: json_schema lacks its schema",
        ),
        (
            MESSAGES,
            {"output_config": {"format": {"type": "json_schema", "schema": []}}},
            "output_config.format",
        ),
    ],
)
def test_an_error_names_the_field_as_the_dialect_does(
    path: str, fields: dict[str, Any], name: str, api: Running
) -> None:
    given = {**body(path, 5, False), "model": "default", **fields}
    answer = api.post(given, path)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert name in (error if path == OLLAMA else error["message"])
    if path == RESPONSES:
        assert error["param"] == "text.format"
