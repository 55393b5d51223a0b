"""The SDKs' own helpers for tools and streams go through two turns with a call each."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel

from tests.support.agent_engine import DONE, AgentEngine
from tests.support.api import Running
from tests.support.npm import Packages
from tests.support.turns import CITY, weather_server

if TYPE_CHECKING:  # a second each, in each worker that collects
    from anthropic import Anthropic
    from openai import OpenAI

QUESTIONS = ("How warm is it there?", "And tomorrow?")
RESULT = "sunny, 24 degrees"
NUM_REQUESTS = 4  # two turns of a call and an answer
NODE = Path(__file__).parent / "node"
# Sessions by name: the script, and the packages that it runs with.
NODE_SESSIONS = {
    "anthropic": ("anthropic", ("@anthropic-ai/sdk@1.14.0",)),
    "openai": ("openai", ("openai@7.59.0", "zod@4.6.7")),
    "ai-5": ("ai", ("ai@5.0.277", "@ai-sdk/openai@2.0.130", "zod@4.6.7")),
    "ai-6": ("ai", ("ai@6.0.325", "@ai-sdk/openai@3.0.141", "zod@4.6.7")),
    "ai-7": ("ai", ("ai@7.0.173", "@ai-sdk/openai@4.0.118", "zod@4.6.7")),
}


class Weather(BaseModel):
    """The weather in a city."""

    city: str


@pytest.fixture
def playing(tiny: Path) -> Iterator[tuple[Running, AgentEngine]]:
    with weather_server(tiny) as parts:
        yield parts


@pytest.fixture
def engine(playing: tuple[Running, AgentEngine]) -> AgentEngine:
    return playing[1]


@pytest.fixture
def openai(playing: tuple[Running, AgentEngine]) -> Iterator[OpenAI]:
    from openai import OpenAI

    address = f"http://127.0.0.1:{playing[0].port}/v1"
    with OpenAI(base_url=address, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def anthropic(playing: tuple[Running, AgentEngine]) -> Iterator[Anthropic]:
    from anthropic import Anthropic

    address = f"http://127.0.0.1:{playing[0].port}"
    with Anthropic(base_url=address, api_key="none", max_retries=0) as client:
        yield client


def check_last(engine: AgentEngine) -> None:
    """Every turn was answered, and the last prompt held all results of both."""
    assert len(engine.prompts) == NUM_REQUESTS
    assert engine.text(engine.prompts[-1]).count(RESULT) == 2


def test_anthropics_tool_runner(anthropic: Anthropic, engine: AgentEngine) -> None:
    from anthropic import beta_tool

    cities = []

    @beta_tool
    def weather(city: str) -> str:
        """The weather in a city."""
        cities.append(city)
        return RESULT

    messages: list[Any] = []
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        runner = anthropic.beta.messages.tool_runner(
            model="default", max_tokens=500, tools=[weather], messages=messages
        )
        for message in runner:
            messages.append({"role": "assistant", "content": message.content})
            if (results := runner.generate_tool_call_response()) is not None:
                messages.append(results)
        assert message.content[0].text == DONE
    assert cities == [CITY, CITY]
    check_last(engine)


def test_anthropics_message_stream(anthropic: Anthropic, engine: AgentEngine) -> None:
    tool = {"name": "weather", "input_schema": Weather.model_json_schema()}
    messages: list[Any] = []
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        while True:
            with anthropic.messages.stream(
                model="default", max_tokens=500, tools=[tool], messages=messages
            ) as stream:
                events = [event.type for event in stream]
                message = stream.get_final_message()
            messages.append({"role": "assistant", "content": message.content})
            if message.stop_reason != "tool_use":
                break
            assert "input_json" in events
            (call,) = message.content
            assert call.input == {"city": CITY}
            row = {"type": "tool_result", "tool_use_id": call.id, "content": RESULT}
            messages.append({"role": "user", "content": [row]})
        assert "text" in events
        assert message.content[0].text == DONE
    check_last(engine)


def test_openais_responses_stream(openai: OpenAI, engine: AgentEngine) -> None:
    tool = {
        "type": "function",
        "name": "weather",
        "parameters": Weather.model_json_schema(),
    }
    earlier = None
    for question in QUESTIONS:
        given: list[Any] = [{"role": "user", "content": question}]
        while given:
            with openai.responses.stream(
                model="default", input=given, tools=[tool], previous_response_id=earlier
            ) as stream:
                events = [event.type for event in stream]
                response = stream.get_final_response()
            assert events[0] == "response.created"
            assert events[-1] == "response.completed"
            earlier, given = response.id, []
            for item in response.output:
                if item.type == "function_call":
                    assert json.loads(item.arguments) == {"city": CITY}
                    row = {"type": "function_call_output", "call_id": item.call_id}
                    given.append({**row, "output": RESULT})
        assert response.output_text == DONE
    check_last(engine)


def test_openais_chat_parse(openai: OpenAI, engine: AgentEngine) -> None:
    from openai import pydantic_function_tool

    tool = pydantic_function_tool(Weather, name="weather")
    messages: list[Any] = []
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        for reason in ("tool_calls", "stop"):
            answer = openai.chat.completions.parse(
                model="default", messages=messages, tools=[tool]
            )
            choice = answer.choices[0]
            assert choice.finish_reason == reason
            messages.append(choice.message)
            for call in choice.message.tool_calls or ():
                assert call.function.parsed_arguments == Weather(city=CITY)
                row = {"role": "tool", "tool_call_id": call.id, "content": RESULT}
                messages.append(row)
        assert choice.message.content == DONE
    check_last(engine)


@pytest.fixture(scope="module")
def packages() -> Iterator[Packages]:
    """Those of all sessions, which begin to be installed at once."""
    begun = Packages()
    for _, names in NODE_SESSIONS.values():
        begun.begin(*names)
    yield begun
    begun.close()


@pytest.mark.parametrize("name", NODE_SESSIONS)
def test_a_session_in_node(
    name: str,
    packages: Packages,
    playing: tuple[Running, AgentEngine],
    tmp_path: Path,
) -> None:
    running, engine = playing
    script_name, names = NODE_SESSIONS[name]
    (tmp_path / "node_modules").symlink_to(packages.folder(*names) / "node_modules")
    script = shutil.copy(NODE / f"{script_name}_turns.mjs", tmp_path)
    done = subprocess.run(
        ["node", script, f"http://127.0.0.1:{running.port}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.stdout.strip() == "done", done.stderr
    assert len(engine.prompts) % NUM_REQUESTS == 0
    assert engine.text(engine.prompts[-1]).count(RESULT) == 2
