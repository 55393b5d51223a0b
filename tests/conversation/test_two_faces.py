"""`LLM.chat` and the server make the same of a conversation, and refuse the same.

Both stand on a scripted engine, which keeps the requests that reach it and says what it
was told to say. Twelve templates, eleven conversations each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from rvllm_local import LLM, Completion, SamplingParams
from rvllm_local.engine.limits import EngineLimits
from rvllm_local.errors import ParameterError
from rvllm_local.types import EventSink, FinishReason, Request, StreamEvent
from tests.conversation.templates import FAMILIES, Family
from tests.support.api import PacedClient, Running, served
from tests.support.prompts_here import PromptsHere
from tests.support.tiny import save_tokenizer
from tests.text.outputs import TOOLS

USER = {"role": "user", "content": "Name a sea. <tool_call> <|im_end|>"}
SYSTEM = {"role": "system", "content": "Be brief."}
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "c1", "function": {"name": "look", "arguments": '{"city": "Rome"}'}}
    ],
}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "sunny"}
SCHEMA = {"type": "object", "properties": {"sea": {"type": "string"}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "sea", "schema": SCHEMA}}
IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}

CONVERSATIONS: dict[str, dict[str, Any]] = {
    "a question": {"messages": [USER]},
    "a system prompt": {"messages": [SYSTEM, USER]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
    "tools": {"messages": [USER], "tools": TOOLS},
    "a call that must come": {
        "messages": [USER],
        "tools": TOOLS,
        "tool_choice": "required",
    },
    "one call that must come": {
        "messages": [USER],
        "tools": TOOLS,
        "tool_choice": {"type": "function", "function": {"name": "look"}},
        "parallel_tool_calls": False,
    },
    "no call": {"messages": [USER], "tools": TOOLS, "tool_choice": "none"},
    "a result": {"messages": [SYSTEM, USER, CALLED, RESULT], "tools": TOOLS},
    "a form": {"messages": [USER], "response_format": FORMAT},
    "no thoughts": {"messages": [USER], "reasoning_budget": 0},
    "an answer to go on with": {
        "messages": [USER, {"role": "assistant", "content": "The "}],
        "continue_final_message": True,
    },
}  # fmt: skip
REFUSED: dict[str, dict[str, Any]] = {
    "no messages": {"messages": []},
    "an unknown role": {"messages": [{"role": "king", "content": "x"}]},
    "a picture": {"messages": [IMAGE]},
    "no content": {"messages": [{"role": "user"}]},
    "a user's call": {"messages": [{**CALLED, "role": "user"}]},
    "a result of nothing": {"messages": [{"role": "tool", "content": "x"}]},
    "a choice without tools": {"messages": [USER], "tool_choice": "required"},
    "an unknown tool": {
        "messages": [USER],
        "tools": TOOLS,
        "tool_choice": {"type": "function", "function": {"name": "f"}},
    },
    "an unknown form": {"messages": [USER], "response_format": {"type": "xml"}},
    "a form that is none": {"messages": [USER], "response_format": "json"},
    "a negative budget": {"messages": [USER], "reasoning_budget": -1},
    "a user's turn to go on with": {
        "messages": [USER],
        "continue_final_message": True,
    },
    "a list for the template": {
        "messages": [USER],
        "chat_template_kwargs": {"names": []},
    },
}


class ScriptedClient(PacedClient):
    """Says `script` in pieces of three characters, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = EngineLimits(384, 100_000, 100_000, (0,))
        self.script = ""
        self.asked: list[Request] = []

    def start(self, requests: Sequence[Request], sink: EventSink) -> None:
        self.asked.extend(requests)
        for request in requests:
            for start in range(0, len(self.script), 3):
                text = self.script[start : start + 3]
                sink(StreamEvent(text, (5,), index=request.index))
            sink(StreamEvent("", (), FinishReason.STOP, index=request.index))


@dataclass(frozen=True)
class Answer:
    """What a caller gets to see."""

    text: str
    reasoning: str
    calls: list[tuple[str, Any]]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folders = {family.name: _save(family, tmp_path_factory) for family in FAMILIES}
    with served(folders, opener=lambda files, options: ScriptedClient()) as server:
        yield server


def _save(family: Family, factory: pytest.TempPathFactory) -> Path:
    folder = factory.mktemp(family.name)
    save_tokenizer(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["chat_template"] = family.template
    path.write_text(json.dumps(settings), encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    return folder


def _python_face(running: Running, family: Family) -> tuple[LLM, ScriptedClient]:
    running.post({"model": family.name, "prompt": "x"}, "/tokenize")
    loaded = running.server.registry.loaded()
    (model,) = [one for one in loaded if one.name == family.name]
    assert isinstance(model.client, ScriptedClient)
    assert isinstance(model.prompts, PromptsHere)
    conversation = replace(model.prompts.model, limits=model.client.limits)
    return LLM.over(model.client, conversation), model.client


def _of_server(body: Mapping[str, Any]) -> Answer:
    message = body["choices"][0]["message"]
    calls = [
        (call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in message.get("tool_calls", ())
    ]
    return Answer(message["content"] or "", message.get("reasoning_content", ""), calls)


def _of_python(completion: Completion) -> Answer:
    calls = [(call.name, json.loads(call.arguments)) for call in completion.tool_calls]
    return Answer(completion.text, completion.reasoning, calls)


def _chat(llm: LLM, body: Mapping[str, Any]) -> Completion:
    arguments = {name: value for name, value in body.items() if name != "messages"}
    options = arguments.pop("chat_template_kwargs", {})
    params = SamplingParams(max_tokens=9, seed=1)
    return llm.chat(body["messages"], params, **arguments, **options)[0]


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_both_ask_the_same_of_the_engine_and_read_the_same(
    running: Running, family: Family, name: str
) -> None:
    body = CONVERSATIONS[name]
    llm, engine = _python_face(running, family)
    engine.script = family.thought + "The sea. " + family.call
    if "tool_choice" in body and body["tool_choice"] != "none":
        engine.script = family.thought + family.call
    answer = running.post({"model": family.name, "max_tokens": 9, "seed": 1, **body})
    if answer.status_code != 200:
        problem = answer.json()["error"]
        with pytest.raises(ParameterError) as refused:
            _chat(llm, body)
        assert str(refused.value) == problem["message"]
        assert refused.value.parameter == problem["param"]
        return
    completion = _chat(llm, body)
    of_server, of_python = engine.asked[-2:]
    assert replace(of_python, request_id="") == replace(of_server, request_id="")
    assert _of_python(completion) == _of_server(answer.json())


@pytest.mark.parametrize("name", REFUSED)
def test_both_refuse_in_the_same_words(running: Running, name: str) -> None:
    llm, _ = _python_face(running, FAMILIES[2])
    answer = running.post({"model": FAMILIES[2].name, "max_tokens": 9, **REFUSED[name]})
    assert answer.status_code == 400
    with pytest.raises(ParameterError) as refused:
        _chat(llm, REFUSED[name])
    problem = answer.json()["error"]
    assert str(refused.value) == problem["message"]
    assert refused.value.parameter == problem["param"]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_call_is_parsed_for_every_template(running: Running, family: Family) -> None:
    llm, engine = _python_face(running, family)
    engine.script = family.thought + family.call
    body = CONVERSATIONS["a call that must come"]
    completion = _chat(llm, body)
    assert engine.asked[-1].grammar is not None
    assert _of_python(completion).calls == [("look", {"city": "Oslo", "days": 3})]
    assert completion.text == ""
    assert completion.reasoning == ("Let me see." if family.thought else "")


def test_events_carry_thinking_and_whole_calls(running: Running) -> None:
    family = FAMILIES[3]
    llm, engine = _python_face(running, family)
    engine.script = family.thought + "Look: " + family.call
    events = list(llm.chat_stream([USER], tools=TOOLS))
    assert "".join(event.reasoning for event in events) == "Let me see."
    assert "".join(event.text for event in events) == "Look:"
    calls = [call for event in events for call in event.tool_calls]
    assert [call.name for call in calls] == ["look"]


def test_a_field_that_nobody_knows_is_named(running: Running) -> None:
    llm, _ = _python_face(running, FAMILIES[0])
    with pytest.raises(ParameterError, match=r"unknown field 'messages\[0\]\.mood'"):
        llm.chat([{**USER, "mood": "gay"}])
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ParameterError, match="tools is nested more than 100 deep"):
        llm.chat(
            [USER],
            tools=[
                {
                    "type": "function",
                    "function": {"name": "f", "parameters": {"a": deep}},
                }
            ],
        )
