"""Every route's answers, byte for byte but for ids and times, from a scripted engine.

`python -m tests.support.wire` writes them anew to tests/api/recorded; read the change
before it is committed, since clients see every byte of it.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from rvllm_local.text.tokenizer_files import read_tokenizer
from tests.support.api import served
from tests.support.scripted import ScriptedClient
from tests.support.served import save_thinking

RECORDED = Path(__file__).parents[1] / "api" / "recorded"
_ID = re.compile(
    r"\b(chatcmpl|cmpl|resp|msg|item|fc|rs|call|toolu|req)[-_][0-9a-f]{20,}"
)
_TIME = re.compile(r'("(?:created|created_at|completed_at|loaded_at)": ?)[0-9.]+')
_OF_THE_PROGRAM = re.compile(r'"(description|version)": "(?:[^"\\]|\\.)*"')
_VALUE = re.compile(r"(?m)^(\w+(?:\{[^}]*\})?) \S+$")
_HEADERS = ("content-type", "retry-after", "x-should-retry", "allow")
WEATHER = {
    "name": "weather",
    "description": "The weather in a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
CLOCK = {"name": "clock", "parameters": {"type": "object", "properties": {}}}
SCHEMA = {
    "type": "object",
    "properties": {"salty": {"type": "boolean"}},
    "required": ["salty"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Step:
    """One request. `$last` in its path or body is the id of the last answer with one."""

    name: str
    path: str
    body: Any = None
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)


def record(address: str) -> list[dict[str, Any]]:
    """Send all steps to a server, and return what it answered."""
    answers, last = [], ""
    with httpx.Client(base_url=address, timeout=60) as client:
        for step in steps():
            path = step.path.replace("$last", last)
            content = None
            headers = dict(step.headers)
            if step.method == "POST":
                text = (
                    step.body if isinstance(step.body, str) else json.dumps(step.body)
                )
                content = text.replace("$last", last).encode()
                headers.setdefault("content-type", "application/json")
            reply = client.request(step.method, path, content=content, headers=headers)
            last = _id_of(reply.text) or last
            kept = {name: reply.headers.get(name) for name in _HEADERS}
            answers.append(
                {
                    "name": step.name,
                    "status": reply.status_code,
                    "headers": {k: v for k, v in kept.items() if v is not None},
                    "body": masked(reply.text, step.path).split("\n"),
                }
            )
    return answers


def masked(text: str, path: str) -> str:
    """The text with ids numbered in order of their coming, and times as 0.

    Figures of /metrics become 0; /openapi.json loses its version and descriptions.
    """
    numbers: dict[str, int] = {}

    def number(match: re.Match[str]) -> str:
        count = numbers.setdefault(match[0], len(numbers) + 1)
        return f"{match[1]}-{count}"

    text = _TIME.sub(r"\g<1>0", _ID.sub(number, text))
    if path == "/metrics":
        text = _VALUE.sub(r"\g<1> 0", text)
    if path == "/openapi.json":
        text = _OF_THE_PROGRAM.sub(r'"\g<1>": ""', text)
    return text


def _id_of(text: str) -> str | None:
    match = re.search(r'"id": ?"(resp_[0-9a-f]+)"', text)
    return match[1] if match else None


def steps() -> Iterator[Step]:
    yield from _chat()
    yield from _texts()
    yield from _responses()
    yield from _messages()
    yield from _others()
    yield from _refusals()


def said(word: str) -> list[dict[str, Any]]:
    """A conversation that the scripted engine answers with the script `word`."""
    return [{"role": "user", "content": f"say:{word}"}]


def _both(name: str, path: str, body: dict[str, Any], **more: Any) -> Iterator[Step]:
    yield Step(f"{name}, whole", path, body, **more)
    yield Step(f"{name}, streamed", path, {**body, "stream": True}, **more)


def _chat() -> Iterator[Step]:
    path = "/v1/chat/completions"
    tools = [{"type": "function", "function": WEATHER}]
    tools += [{"type": "function", "function": CLOCK}]
    form = {"type": "json_schema", "json_schema": {"name": "sea", "schema": SCHEMA}}
    later = [
        *said("call"),
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "Lisbon"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny say:hello"},
    ]
    cases: dict[str, dict[str, Any]] = {
        "plain": {"messages": said("hello")},
        "cut": {"messages": said("hello"), "max_tokens": 4},
        "thought": {"messages": said("thought")},
        "cut thought": {"messages": said("thought"), "max_tokens": 12},
        "call": {"messages": said("call"), "tools": tools},
        "forced call": {
            "messages": said("call"),
            "tools": tools,
            "tool_choice": "required",
        },
        "named call": {
            "messages": said("call"),
            "tools": tools,
            "tool_choice": {"type": "function", "function": {"name": "weather"}},
        },
        "cut call": {"messages": said("call"), "tools": tools, "max_tokens": 30},
        "two calls": {"messages": said("calls"), "tools": tools},
        "after a call": {"messages": later, "tools": tools},
        "no calls": {"messages": said("call"), "tools": tools, "tool_choice": "none"},
        "logprobs": {"messages": said("hello"), "logprobs": True, "top_logprobs": 2},
        "two choices": {"messages": said("hello"), "n": 2, "seed": 3},
        "stop": {"messages": said("stop"), "stop": ["STOP"]},
        "format": {"messages": said("json"), "response_format": form},
        "nothing": {"messages": said("nothing")},
        "failure": {"messages": said("failure")},
        "crash": {"messages": said("crash")},
        "full queue": {"messages": said("full")},
        "too long": {"messages": said("x" * 3000)},
        "too many tokens": {"messages": said("hello"), "max_tokens": 5000},
        "no thinking": {"messages": said("hello"), "reasoning_effort": "none"},
        "too many choices": {"messages": said("hello"), "n": 13},
    }
    for name, body in cases.items():
        yield from _both(f"chat {name}", path, {"model": "default", **body})
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    yield Step(
        "chat usage", path, {"model": "tiny", "messages": said("hello"), **usage}
    )


def _texts() -> Iterator[Step]:
    cases: dict[str, dict[str, Any]] = {
        "plain": {"prompt": "say:hello", "max_tokens": 40},
        "cut": {"prompt": "say:hello"},
        "many": {"prompt": ["say:hello", "say:stop"], "n": 2, "max_tokens": 5},
        "echo": {"prompt": "say:hello", "echo": True, "max_tokens": 40},
        "token echo": {"prompt": [70, 71, 72], "echo": True, "max_tokens": 4},
        "logprobs": {"prompt": "say:hello", "logprobs": 2, "max_tokens": 4},
        "stop": {"prompt": "say:stop", "stop": "STOP", "max_tokens": 60},
        "suffix": {"prompt": "a", "suffix": "b"},
        "failure": {"prompt": "say:failure"},
    }
    for name, body in cases.items():
        yield from _both(
            f"text {name}", "/v1/completions", {"model": "default", **body}
        )


def _responses() -> Iterator[Step]:
    path = "/v1/responses"
    tools = [{"type": "function", **WEATHER}, {"type": "function", **CLOCK}]
    form = {"format": {"type": "json_schema", "name": "sea", "schema": SCHEMA}}
    user = {"role": "user", "content": [{"type": "input_text", "text": "say:hello"}]}
    call = {"call_id": "call_1", "name": "clock", "arguments": "{}"}
    later = [
        user,
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "function_call", **call},
        {"type": "function_call_output", "call_id": "call_1", "output": "say:thought"},
    ]
    cases: dict[str, dict[str, Any]] = {
        "plain": {"input": "say:hello"},
        "cut": {"input": "say:hello", "max_output_tokens": 4},
        "thought": {"input": "say:thought", "reasoning": {"effort": "low"}},
        "cut thought": {"input": "say:thought", "max_output_tokens": 12},
        "call": {"input": "say:call", "tools": tools},
        "cut call": {"input": "say:call", "tools": tools, "max_output_tokens": 30},
        "two calls": {"input": "say:calls", "tools": tools, "tool_choice": "required"},
        "items": {"input": later, "tools": tools, "instructions": "Be brief."},
        "logprobs": {
            "input": "say:hello",
            "top_logprobs": 1,
            "include": ["message.output_text.logprobs"],
        },
        "format": {"input": "say:json", "text": form},
        "nothing": {"input": "say:nothing"},
        "not kept": {"input": "say:hello", "store": False, "metadata": {"a": "b"}},
        "failure": {"input": "say:failure"},
        "full queue": {"input": "say:full"},
        "unknown before": {"input": "say:hello", "previous_response_id": "resp_x"},
        "too long": {"input": "x" * 3000},
    }
    for name, body in cases.items():
        yield from _both(f"responses {name}", path, {"model": "default", **body})
    yield Step("responses kept", path, {"model": "default", "input": "say:calls"})
    more = {"input": "say:thought", "previous_response_id": "$last"}
    yield Step("responses continued", path, {"model": "default", **more})
    yield Step("responses retrieved", f"{path}/$last", method="GET")
    yield Step("responses items", f"{path}/$last/input_items?limit=1", method="GET")
    yield Step(
        "responses wrong order", f"{path}/$last/input_items?order=x", method="GET"
    )
    yield Step("responses deleted", f"{path}/$last", method="DELETE")
    yield Step("responses forgotten", f"{path}/$last", method="GET")


def _messages() -> Iterator[Step]:
    path = "/v1/messages"
    theirs = {"anthropic-version": "2023-06-01"}
    tools = [
        {"name": tool["name"], "input_schema": tool["parameters"]}
        for tool in (WEATHER, CLOCK)
    ]
    later = [
        {"role": "user", "content": [{"type": "text", "text": "say:call"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": ""},
                {"type": "tool_use", "id": "call_1", "name": "clock", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "call_1", "content": "noon"},
                {"type": "text", "text": "say:hello"},
            ],
        },
    ]
    cases: dict[str, dict[str, Any]] = {
        "plain": {"messages": said("hello"), "system": "Be brief."},
        "cut": {"messages": said("hello"), "max_tokens": 4},
        "thought": {"messages": said("thought")},
        "omitted thought": {
            "messages": said("thought"),
            "thinking": {"type": "adaptive", "display": "omitted"},
        },
        "cut thought": {"messages": said("thought"), "max_tokens": 12},
        "call": {"messages": said("call"), "tools": tools},
        "cut call": {"messages": said("call"), "tools": tools, "max_tokens": 30},
        "two calls": {
            "messages": said("calls"),
            "tools": tools,
            "tool_choice": {"type": "any"},
        },
        "after a call": {"messages": later, "tools": tools},
        "stop": {"messages": said("stop"), "stop_sequences": ["STOP"]},
        "nothing": {"messages": said("nothing")},
        "failure": {"messages": said("failure")},
        "crash": {"messages": said("crash")},
        "full queue": {"messages": said("full")},
        "too long": {"messages": said("x" * 3000)},
        "no messages": {"messages": []},
    }
    for name, body in cases.items():
        body = {"model": "default", "max_tokens": 200, **body}
        yield from _both(f"messages {name}", path, body, headers=theirs)
    count = {"model": "default", "messages": later, "tools": tools}
    yield Step("messages counted", f"{path}/count_tokens", count, headers=theirs)


def _others() -> Iterator[Step]:
    params = {"max_tokens": 30, "logprobs": 1}
    generate = {"prompt_token_ids": [70, 71], "params": params, "seeds": [1, 2]}
    load = "/v1/engine/load"
    yield Step("models", "/v1/models", method="GET")
    yield Step("model", "/v1/models/tiny", method="GET")
    yield Step("engine", "/v1/engine", method="GET")
    yield Step("health", "/health", method="GET")
    yield Step("metrics", "/metrics", method="GET")
    yield Step("explained", "/v1/engine/explain/told", method="GET")
    yield Step("unexplained", "/v1/engine/explain/other", method="GET")
    yield Step("tokenized", "/tokenize", {"prompt": "the sea"})
    yield Step("tokenized chat", "/tokenize", {"messages": said("hello")})
    yield Step("tokenized neither", "/tokenize", {})
    yield Step("detokenized", "/detokenize", {"tokens": [70, 71, 1]})
    yield Step("detokenized wrongly", "/detokenize", {"tokens": [384]})
    yield Step("loaded", load, {"model": "tiny"})
    yield Step("generated", "/v1/engine/generate", {"request_id": "r", **generate})
    wrong = {"request_id": "a b", **generate}
    yield Step("generated wrongly", "/v1/engine/generate", wrong)
    yield Step("ended", "/v1/engine/requests/nobody", method="DELETE")
    yield Step("openapi", "/openapi.json", method="GET")


def _refusals() -> Iterator[Step]:
    """What is wrong in a body, for each dialect; and what the guard refuses."""
    yield from _chat_refusals()
    yield from _other_refusals()
    yield from _guard_refusals()


def _chat_refusals() -> Iterator[Step]:
    chat = {"model": "default", "messages": said("hello")}
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    for name, more in {
        "no such model": {"model": "gpt-9"},
        "unknown field": {"frobnicate": 1},
        "wrong type": {"temperature": "hot"},
        "out of range": {"temperature": 9},
        "unsupported": {"store": True},
        "picture": {"messages": [{"role": "user", "content": [image]}]},
        "bad role": {"messages": [{"role": "wizard", "content": ""}]},
        "lone choice": {"tool_choice": "required"},
        "lone alternatives": {"top_logprobs": 2},
        "stray options": {"stream_options": {}},
        "no format": {"response_format": {"type": "poem"}},
        "two formats": {"guided_regex": "a", "guided_choice": ["a"]},
        "no number": {"max_tokens": 0},
        "priority": {"priority": 500},
        "budget": {"reasoning_budget": -1},
        "bias": {"logit_bias": {"x": 1}},
    }.items():
        yield Step(f"chat refused: {name}", "/v1/chat/completions", {**chat, **more})


def _other_refusals() -> Iterator[Step]:
    """Of the other dialects."""
    response = {"model": "default", "input": "say:hello"}
    for name, more in {
        "background": {"background": True},
        "include": {"include": ["file_search_call.results"]},
        "item": {"input": [{"type": "item_reference", "id": "x"}]},
        "tool": {"tools": [{"type": "web_search"}]},
        "verbosity": {"text": {"verbosity": "high"}},
        "empty": {"input": []},
    }.items():
        yield Step(f"responses refused: {name}", "/v1/responses", {**response, **more})
    message = {"model": "default", "messages": said("hello"), "max_tokens": 9}
    for name, more in {
        "temperature": {"temperature": 1.5},
        "server tool": {"tools": [{"type": "web_search_20250305", "name": "s"}]},
        "picture": {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
        "thinking": {"thinking": {"type": "enabled"}},
        "choice": {"tool_choice": {"type": "any"}},
        "unknown field": {"frobnicate": {}},
    }.items():
        yield Step(f"messages refused: {name}", "/v1/messages", {**message, **more})
    text = {"model": "default", "prompt": "a"}
    for name, more in {
        "echoed logprobs": {"echo": True, "logprobs": 1},
        "best of": {"best_of": 3},
        "no prompt": {"prompt": []},
        "wrong prompt": {"prompt": [["a"]]},
        "logprobs": {"logprobs": 50},
    }.items():
        yield Step(f"text refused: {name}", "/v1/completions", {**text, **more})


def _guard_refusals() -> Iterator[Step]:
    path = "/v1/chat/completions"
    yield Step("refused: no JSON", path, "{")
    yield Step("refused: nothing", path, "")
    yield Step("refused: type", path, "{}", headers={"content-type": "text/plain"})
    yield Step("refused: host", path, "{}", headers={"host": "example.org"})
    yield Step("refused: origin", path, "{}", headers={"origin": "https://a.example"})
    yield Step("refused: method", path, method="GET")
    yield Step("refused: route", "/v1/nothing", {})
    yield Step("refused: their route", "/v1/messages/nothing", {})


def write(address: str, folder: Path) -> None:
    """Record a server's answers into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record(address), indent=1, ensure_ascii=True)
    (folder / "wire.json").write_text(f"{text}\n", encoding="utf-8")


def open_scripted(files: Any, options: Any) -> ScriptedClient:
    """A scripted engine for the tokenizer of a model folder."""
    return ScriptedClient(read_tokenizer(files))


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else RECORDED
    with tempfile.TemporaryDirectory() as scratch:
        model = save_thinking(Path(scratch) / "tiny")
        with served({"tiny": model}, opener=open_scripted) as running:
            write(f"http://127.0.0.1:{running.port}", folder)


if __name__ == "__main__":
    main()
