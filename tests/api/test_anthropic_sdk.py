"""The official anthropic client goes through every route that it knows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import validate

if TYPE_CHECKING:  # a second, in each worker that collects
    import anthropic

HELLO: list[Any] = [{"role": "user", "content": "Say hello."}]
COLD = {"temperature": 0}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: Any = {
    "name": "weather",
    "description": "Tells the weather.",
    "input_schema": SCHEMA,
}


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[anthropic.Anthropic]:
    import anthropic

    with anthropic.Anthropic(
        base_url=address, api_key="none", max_retries=0, timeout=120
    ) as made:
        yield made


def test_models_are_listed(client: anthropic.Anthropic) -> None:
    assert "thinker" in [model.id for model in client.models.list()]


def test_a_message_is_answered_with_usage(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(
        model="default",
        max_tokens=6,
        messages=HELLO,
        system="Be brief.",
        extra_body=COLD,
    )
    assert (answer.stop_reason, answer.usage.output_tokens) == ("max_tokens", 6)
    assert answer.content[0].type == "text" and answer.content[0].text


def test_cached_tokens_are_counted_apart(client: anthropic.Anthropic) -> None:
    options: Any = {
        "model": "default",
        "max_tokens": 2,
        "messages": [{"role": "user", "content": "word " * 100}],
    }
    first, second = (client.messages.create(**options).usage for _ in range(2))
    total = first.input_tokens + (first.cache_read_input_tokens or 0)
    assert (
        second.cache_read_input_tokens >= 96
        and second.input_tokens + second.cache_read_input_tokens == total
    )


def test_a_stream_ends_with_the_whole_message(client: anthropic.Anthropic) -> None:
    with client.messages.stream(
        model="default", max_tokens=8, messages=HELLO, extra_body=COLD
    ) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert final.content[0].type == "text" and final.content[0].text == text
    assert final.usage.output_tokens == 8


def test_a_stop_sequence_is_named(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(
        model="default", max_tokens=20, messages=HELLO, extra_body=COLD
    )
    stop = whole.content[0].text[6:9]  # type: ignore[union-attr]
    answer = client.messages.create(
        model="default",
        max_tokens=20,
        messages=HELLO,
        extra_body=COLD,
        stop_sequences=[stop],
    )
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", stop)


@pytest.mark.parametrize(
    "choice", [{"type": "any"}, {"type": "tool", "name": "weather"}]
)
@pytest.mark.parametrize("model", ["default", "thinker"])
def test_a_tool_is_used_and_its_result_taken(
    client: anthropic.Anthropic, model: str, choice: Any
) -> None:
    options: Any = {
        "model": model,
        "max_tokens": 300,
        "tools": [WEATHER],
        "thinking": {"type": "disabled"},
    }
    with client.messages.stream(
        messages=HELLO, tool_choice=choice, **options
    ) as stream:
        first = stream.get_final_message()
    calls = [block for block in first.content if block.type == "tool_use"]
    assert first.stop_reason == "tool_use" and calls
    for call in calls:
        validate(call.input, SCHEMA)
    results: Any = [
        {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
        for call in calls
    ]
    messages: Any = [
        *HELLO,
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": results},
    ]
    second = client.messages.create(
        messages=messages, tool_choice={"type": "none"}, **{**options, "max_tokens": 5}
    )
    assert second.stop_reason in ("max_tokens", "end_turn")


def test_thinking_comes_in_blocks_of_its_own(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(
        model="thinker",
        max_tokens=60,
        messages=HELLO,
        thinking={"type": "enabled", "budget_tokens": 6},
    )
    assert [block.type for block in answer.content] in (
        ["thinking", "text"],
        ["text"],
        ["thinking"],
    )
    assert all(
        "think>" not in block.text for block in answer.content if block.type == "text"
    )


def test_a_schema_holds(client: anthropic.Anthropic) -> None:
    form: Any = {"format": {"type": "json_schema", "schema": SCHEMA}}
    answer = client.messages.create(
        model="default", max_tokens=200, messages=HELLO, output_config=form
    )
    assert answer.content[0].type == "text"
    validate(json.loads(answer.content[0].text), SCHEMA)


def test_tokens_are_counted_as_they_are_billed(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(
        model="default", messages=HELLO, tools=[WEATHER]
    )
    answer = client.messages.create(
        model="default", max_tokens=1, messages=HELLO, tools=[WEATHER]
    )
    assert counted.input_tokens == answer.usage.input_tokens + (
        answer.usage.cache_read_input_tokens or 0
    )


def test_errors_are_the_clients_own(client: anthropic.Anthropic) -> None:
    import anthropic

    with pytest.raises(anthropic.NotFoundError, match="there is no model"):
        client.messages.create(model="claude", max_tokens=1, messages=HELLO)
    with pytest.raises(anthropic.BadRequestError, match="reads text only"):
        image: Any = [
            {
                "type": "image",
                "source": {"type": "url", "url": "https://example.org/x.png"},
            }
        ]
        client.messages.create(
            model="default", max_tokens=1, messages=[{"role": "user", "content": image}]
        )
    search: Any = {"type": "web_search_20250305", "name": "web_search"}
    left_out = client.messages.create(
        model="default", max_tokens=1, messages=HELLO, tools=[search]
    )
    assert left_out.type == "message"
    with pytest.raises(anthropic.BadRequestError, match="demands a tool"):
        client.messages.create(
            model="default",
            max_tokens=1,
            messages=HELLO,
            tools=[search],
            tool_choice={"type": "tool", "name": "web_search"},
        )
    with pytest.raises(anthropic.BadRequestError, match="unknown field"):
        client.messages.create(
            model="default",
            max_tokens=1,
            messages=HELLO,
            extra_body={"no_such_field": []},
        )


def test_an_assistants_turn_is_gone_on_from(client: anthropic.Anthropic) -> None:
    import anthropic

    given: Any = [*HELLO, {"role": "assistant", "content": "I"}]
    asked = client.messages.count_tokens(model="default", messages=given).input_tokens
    message = client.messages.create(model="default", max_tokens=3, messages=given)
    assert (
        message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)
        == asked
    )
    with pytest.raises(anthropic.BadRequestError, match="text can be continued"):
        call: Any = {"type": "tool_use", "id": "1", "name": "f", "input": {}}
        client.messages.create(
            model="default",
            max_tokens=3,
            messages=[*HELLO, {"role": "assistant", "content": [call]}],
        )
