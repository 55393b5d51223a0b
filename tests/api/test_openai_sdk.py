"""The official openai client goes through every route that it knows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from jsonschema import validate

if TYPE_CHECKING:  # a second, in each worker that collects
    import openai

HELLO: list[Any] = [{"role": "user", "content": "Say hello."}]
WEATHER_SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": WEATHER_SCHEMA, "strict": True},
}
CLOCK: Any = {
    "type": "function",
    "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}},
}


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    import openai

    with openai.OpenAI(
        base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=120
    ) as made:
        yield made


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    import openai

    names = [model.id for model in client.models.list()]
    assert "thinker" in names
    assert client.models.retrieve("thinker").id == "thinker"
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-9' here"):
        client.models.retrieve("gpt-9")


def test_a_chat_is_answered_with_usage(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="default", messages=HELLO, max_tokens=6, temperature=0
    )
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 6
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 6


def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI) -> None:
    options: Any = {
        "model": "default",
        "messages": HELLO,
        "max_tokens": 8,
        "temperature": 0,
    }
    whole = client.chat.completions.create(**options)
    chunks = list(
        client.chat.completions.create(
            **options, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(
        chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices
    )
    assert text == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][
        -1
    ] == "length"
    assert chunks[-1].usage == whole.usage.model_copy(
        update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}
    )
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_a_seed_makes_choices_repeat(client: openai.OpenAI) -> None:
    options: Any = {
        "model": "default",
        "messages": HELLO,
        "max_tokens": 8,
        "seed": 11,
        "n": 2,
        "temperature": 1.5,
    }
    first, second = (client.chat.completions.create(**options) for _ in range(2))
    texts = [
        [choice.message.content for choice in answer.choices]
        for answer in (first, second)
    ]
    assert texts[0] == texts[1]
    assert texts[0][0] != texts[0][1]


def test_logprobs_come_with_alternatives(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="default",
        messages=HELLO,
        max_tokens=3,
        logprobs=True,
        top_logprobs=2,
        temperature=0,
    )
    logprobs = answer.choices[0].logprobs
    assert (
        logprobs is not None
        and logprobs.content is not None
        and len(logprobs.content) == 3
    )
    assert (
        "".join(one.token for one in logprobs.content)
        == answer.choices[0].message.content
    )
    assert all(
        one.top_logprobs[0].logprob >= one.top_logprobs[1].logprob
        for one in logprobs.content
    )
    assert all(bytes(one.bytes or []).decode() == one.token for one in logprobs.content)


def test_a_stop_string_ends_the_text_before_it(client: openai.OpenAI) -> None:
    options: Any = {
        "model": "default",
        "messages": HELLO,
        "temperature": 0,
        "max_tokens": 30,
    }
    text = client.chat.completions.create(**options).choices[0].message.content or ""
    stop = text[8:12]
    cut = client.chat.completions.create(**options, stop=[stop]).choices[0]
    assert (cut.message.content, cut.finish_reason) == (
        text[: text.index(stop)],
        "stop",
    )


def test_a_bias_bans_a_token(client: openai.OpenAI, address: str) -> None:
    options: Any = {
        "model": "default",
        "messages": HELLO,
        "temperature": 0,
        "max_tokens": 1,
    }
    free = client.chat.completions.create(**options).choices[0].message.content
    found = httpx.post(
        f"{address}/tokenize", json={"prompt": free}, timeout=240
    ).json()["tokens"]
    banned = (
        client.chat.completions.create(**options, logit_bias={str(found[0]): -100})
        .choices[0]
        .message.content
    )
    assert banned != free


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
def test_a_tool_is_called_with_valid_arguments(
    client: openai.OpenAI, choice: Any
) -> None:
    answer = client.chat.completions.create(
        model="thinker", messages=HELLO, tools=[WEATHER], tool_choice=choice, max_tokens=300, seed=5,
        extra_body={"reasoning_budget": 4},
    )  # fmt: skip
    made = answer.choices[0]
    assert made.finish_reason == "tool_calls" and made.message.tool_calls
    for call in made.message.tool_calls:
        validate(json.loads(call.function.arguments), WEATHER_SCHEMA)
    assert "<tool_call>" not in (made.message.content or "")


def test_argument_deltas_make_the_whole_call(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="default", messages=HELLO, tools=[WEATHER, CLOCK], tool_choice="required", parallel_tool_calls=False,
        max_tokens=200, stream=True, temperature=0,
    )  # fmt: skip
    name, arguments, reasons = "", "", []
    for chunk in stream:
        for part in chunk.choices[0].delta.tool_calls or []:
            name += part.function.name or ""
            arguments += part.function.arguments or ""
        reasons.append(chunk.choices[0].finish_reason)
    assert name in ("weather", "clock") and isinstance(json.loads(arguments), dict)
    assert reasons[-1] == "tool_calls"


def test_a_tool_loop_goes_on_with_the_result(client: openai.OpenAI) -> None:
    messages = list(HELLO)
    options: Any = {
        "model": "default",
        "tools": [WEATHER],
        "temperature": 0,
        "max_tokens": 120,
    }
    first = (
        client.chat.completions.create(
            messages=messages, tool_choice="required", **options
        )
        .choices[0]
        .message
    )
    assert first.tool_calls
    messages.append(first.model_dump(exclude_none=True))
    messages += [
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
        for call in first.tool_calls
    ]
    second = client.chat.completions.create(
        messages=messages, tool_choice="none", **options
    )
    assert (
        second.choices[0].message.tool_calls is None
        and second.choices[0].message.content
    )
    # "none" leaves the tools out of the prompt; a turn with them has the first one's.
    third = client.chat.completions.create(
        messages=messages, tool_choice="required", **options
    )
    assert third.usage.prompt_tokens_details.cached_tokens >= 32


@pytest.mark.parametrize("model", ["default", "thinker"])
def test_a_schema_holds_whatever_the_model_is(
    client: openai.OpenAI, model: str
) -> None:
    form: Any = {
        "type": "json_schema",
        "json_schema": {"name": "w", "schema": WEATHER_SCHEMA, "strict": True},
    }
    answer = client.chat.completions.create(
        model=model,
        messages=HELLO,
        response_format=form,
        max_tokens=300,
        seed=3,
        reasoning_effort="none",
    )
    assert answer.choices[0].finish_reason == "stop"
    validate(json.loads(answer.choices[0].message.content or ""), WEATHER_SCHEMA)


def test_what_cannot_be_enforced_is_refused_by_name(client: openai.OpenAI) -> None:
    import openai

    form: Any = {
        "type": "json_schema",
        "json_schema": {
            "name": "w",
            "strict": True,
            "schema": {"$ref": "https://example.org/x"},
        },
    }
    with pytest.raises(openai.BadRequestError, match="ref"):
        client.chat.completions.create(
            model="default", messages=HELLO, response_format=form
        )


def test_thinking_comes_apart_from_the_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="thinker",
        messages=HELLO,
        max_tokens=60,
        seed=2,
        extra_body={"reasoning_budget": 6},
    )
    message: Any = answer.choices[0].message
    assert "<think>" not in (message.content or "") and "</think>" not in (
        message.content or ""
    )
    assert answer.usage.completion_tokens_details.reasoning_tokens <= 12


def test_completions_take_text_and_tokens_and_echo(client: openai.OpenAI) -> None:
    prompt = "The capital of France is"
    options: Any = {"model": "default", "max_tokens": 3, "temperature": 0}
    plain = client.completions.create(prompt=prompt, **options).choices[0]
    echoed = client.completions.create(
        prompt=[prompt, prompt], echo=True, logprobs=None, **options
    ).choices
    assert [choice.text for choice in echoed] == [prompt + plain.text] * 2
    streamed = "".join(
        part.choices[0].text
        for part in client.completions.create(prompt=prompt, stream=True, **options)
    )
    assert streamed == plain.text
    scored = (
        client.completions.create(prompt=prompt, logprobs=1, **options)
        .choices[0]
        .logprobs
    )
    assert "".join(scored.tokens) == plain.text and scored.text_offset[0] == 0


def test_a_suffix_is_refused_by_a_model_that_cannot(client: openai.OpenAI) -> None:
    import openai

    with pytest.raises(openai.BadRequestError, match="fill in a middle"):
        client.completions.create(model="thinker", prompt="def f():", suffix="return x")


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    import openai

    with pytest.raises(openai.BadRequestError, match="unknown field 'colour'"):
        client.chat.completions.create(
            model="default", messages=HELLO, extra_body={"colour": 1}
        )
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model="default", messages=HELLO, temperature=-1)
    with pytest.raises(openai.BadRequestError, match="reads text only"):
        image: Any = [{"type": "image_url", "image_url": {"url": "data:,"}}]
        client.chat.completions.create(
            model="default", messages=[{"role": "user", "content": image}]
        )
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="default", prompt="x " * 5000)
    assert caught.value.code == "context_length_exceeded"


def test_leaving_a_stream_cancels_it(client: openai.OpenAI, address: str) -> None:
    stream = client.chat.completions.create(
        model="default", messages=HELLO, max_tokens=1500, stream=True
    )
    next(iter(stream))
    stream.close()
    for _ in range(200):
        engines = client.get("/engine", cast_to=object)["engines"]  # type: ignore[index]
        if not any(engine["requests"] for engine in engines):
            break
    assert not any(engine["requests"] for engine in engines)


def test_responses_are_kept_and_gone_on_from(client: openai.OpenAI) -> None:
    import openai

    options: Any = {"model": "default", "max_output_tokens": 8, "temperature": 0}
    first = client.responses.create(
        input="Say hello.", instructions="Be brief.", **options
    )
    assert first.status == "incomplete" and first.output_text
    second = client.responses.create(
        input="Again.", previous_response_id=first.id, **options
    )
    assert second.usage.input_tokens > first.usage.input_tokens - 10
    assert client.responses.retrieve(first.id).output_text == first.output_text
    assert [item.type for item in client.responses.input_items.list(first.id)] == [
        "message"
    ]
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    unkept = client.responses.create(input="Say hello.", store=False, **options)
    with pytest.raises(openai.NotFoundError, match="send the whole input"):
        client.responses.create(
            input="Again.", previous_response_id=unkept.id, **options
        )


def test_a_response_streams_every_event_of_its_items(client: openai.OpenAI) -> None:
    with client.responses.stream(
        model="default", input="Give the weather.", max_output_tokens=200, temperature=0, tool_choice="required",
        tools=[{"type": "function", "name": "weather", "parameters": WEATHER_SCHEMA, "strict": True}],
    ) as stream:  # fmt: skip
        events = list(stream)
        final = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    call: Any = final.output[-1]
    validate(json.loads(call.arguments), WEATHER_SCHEMA)
    follow = client.responses.create(
        model="default", previous_response_id=final.id, max_output_tokens=5,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}],
    )  # fmt: skip
    assert follow.output_text


def test_a_response_holds_to_a_schema_and_shows_its_reasoning(
    client: openai.OpenAI,
) -> None:
    text: Any = {
        "format": {
            "type": "json_schema",
            "name": "w",
            "schema": WEATHER_SCHEMA,
            "strict": True,
        }
    }
    found = client.responses.create(
        model="thinker",
        input="x",
        text=text,
        max_output_tokens=400,
        extra_body={"reasoning": {"budget_tokens": 5}},
    )
    validate(json.loads(found.output_text), WEATHER_SCHEMA)
    assert {item.type for item in found.output} <= {"reasoning", "message"}
