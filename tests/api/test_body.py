"""Bodies that lie: each is a 400 that names the field and quotes nothing of the input."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from rvllm_local.server.http.settings import ServerSettings
from tests.support.api import CHAT, PacedClient, Running, served

SECRET = "zebra-crossing"
MESSAGES = json.dumps([{"role": "user", "content": SECRET}])


def send(
    api: Running, fields: str, path: str = "/v1/chat/completions"
) -> tuple[int, dict[str, object]]:
    body = f'{{"model": "default", "messages": {MESSAGES}, "max_tokens": 1, {fields}}}'
    answer = api.client.post(
        path, content=body.encode(), headers={"content-type": "application/json"}
    )
    assert SECRET not in answer.text
    return answer.status_code, answer.json()["error"]


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [
        ('"top_k": 999999999999999999999999', "top_k"), ('"max_tokens": 999999999999999999999999', "max_tokens"),
        ('"reasoning_budget": 99999999999999999999999', "reasoning_budget"), ('"seed": true', "seed"), ('"seed": "3"', "seed"), ('"seed": 2.0', "seed"), ('"seed": 1e400', None),
        ('"seed": 99999999999999999999999', "seed"), ('"n": 0', "n"), ('"n": 17', "n"), ('"n": true', "n"),
        ('"max_completion_tokens": 5', "max_tokens"), ('"temperature": "hot"', "temperature"), ('"temperature": -0.1', "temperature"),
        ('"temperature": NaN', None), ('"temperature": Infinity', None), ('"temperature": 1e999', None), ('"top_p": -0.1', "top_p"),
        ('"top_p": 1.5', "top_p"), ('"top_k": -2', "top_k"), ('"min_p": 2', "min_p"), ('"presence_penalty": 3', "presence_penalty"),
        ('"repetition_penalty": 0', "repetition_penalty"), ('"stop": 5', "stop"), ('"stop": [""]', "stop"),
        (f'"stop": [{",".join(65 * [chr(34) + "a" + chr(34)])}]', "stop"),
        ('"logit_bias": {"x": 1}', "logit_bias"), ('"logit_bias": {"5": 101}', "logit_bias"), ('"logit_bias": {"999999": 1}', "logit_bias"),
        ('"logit_bias": []', "logit_bias"), ('"top_logprobs": 2', "top_logprobs"), ('"logprobs": 3', "logprobs"),
        ('"logprobs": true, "top_logprobs": 21', "logprobs"), ('"stream": "yes"', "stream"), ('"stream_options": {}', "stream_options"),
        ('"stream": true, "stream_options": {"colour": 1}', "stream_options.colour"), ('"colour": "red"', "colour"),
        ('"tools": {}', "tools"), ('"tools": [{"type": "function"}]', "tools[0]"), ('"tool_choice": "required"', "tool_choice"),
        ('"tool_choice": "some"', None), ('"response_format": {"type": "yaml"}', "response_format"),
        ('"response_format": {"type": "json_schema"}', "response_format"), ('"response_format": "json"', "response_format"),
        ('"priority": 1000', "priority"), ('"reasoning_budget": -1', "reasoning_budget"), ('"reasoning_effort": "huge"', "reasoning_effort"),
        ('"chat_template_kwargs": {"messages": "x"}', "chat_template_kwargs"), ('"chat_template_kwargs": {"a": [1]}', "chat_template_kwargs"), ('"chat_template_kwargs": {"continues": true}', "chat_template_kwargs"),
        ('"functions": [{}]', "functions"), ('"audio": {}', "audio"), ('"store": true', "store"), ('"service_tier": "flex"', "service_tier"),
        ('"guided_regex": "a", "guided_choice": ["b"]', "guided_regex"), ('"guided_regex": "("', "response_format"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_by_its_name(
    api: Running, fields: str, parameter: str | None
) -> None:
    status, error = send(api, fields)
    assert status == 400, error
    if parameter is not None:
        assert str(error["param"]).startswith(parameter), error


@pytest.mark.parametrize(
    "messages",
    ["[]", "{}", '"hi"', "[[]]", '[{"role": "user"}]', '[{"content": "x"}]', '[{"role": "king", "content": "x"}]',
     '[{"role": "user", "content": 5}]', '[{"role": "user", "content": null}]', '[{"role": "tool", "content": "x"}]',
     '[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]', '[{"role": "user", "content": [5]}]',
     '[{"role": "user", "content": "x", "mood": "good"}]', '[{"role": "user", "content": "x", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}]',
     '[{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {}}}]}]', '[{"role": "user", "content": "\\ud800"}]',
     '[{"role": "user", "content": "\\udc00\\ud800"}]', '[{"role": "function", "content": "x", "name": "f"}]'],
)  # fmt: skip
def test_wrong_messages_are_refused(api: Running, messages: str) -> None:
    body = f'{{"model": "default", "max_tokens": 1, "messages": {messages}}}'.encode()
    answer = api.client.post(
        "/v1/chat/completions",
        content=body,
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 400, answer.text


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/completions",
        "/tokenize",
    ],
)
@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"5", b'"x"', b"{", b"{}}", b'{"model": }', b"\xff\xfe{}", b'{"model": "\xc3\x28"}', b"[" * 90_000,
     b'{"a":' * 5_000, b'{"model": "default", "x": ' + b"[" * 200 + b"]" * 200 + b"}", b"{'model': 1}", b"\x00"],
)  # fmt: skip
def test_what_is_no_object_in_json_is_refused(
    api: Running, path: str, body: bytes
) -> None:
    answer = api.client.post(
        path, content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400, (body[:20], answer.text)
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": []}), ("/v1/completions", {"prompt": [""]}), ("/v1/completions", {"prompt": [1, "a"]}),
        ("/v1/completions", {"prompt": [-1]}), ("/v1/completions", {"prompt": [10**9]}), ("/v1/completions", {"prompt": [True]}),
        ("/v1/completions", {"prompt": [1.5]}), ("/v1/completions", {"prompt": ["a"] * 65}), ("/v1/completions", {"prompt": "a", "best_of": 3}),
        ("/v1/completions", {"prompt": "a", "echo": True, "logprobs": 21}), ("/v1/completions", {"prompt": "a", "max_tokens": -2}),
        ("/v1/responses", {"input": []}), ("/v1/responses", {"input": [{"type": "item_reference", "id": "x"}]}),
        ("/v1/responses", {"input": "a", "background": True}), ("/v1/responses", {"input": "a", "truncation": "auto"}),
        ("/v1/responses", {"input": "a", "include": ["everything"]}), ("/v1/responses", {"input": "a", "tools": [{"type": "function"}]}),
        ("/v1/responses", {"input": "a", "tool_choice": {"type": "function", "name": "f"}}),
        ("/v1/responses", {"input": "a", "text": {"verbosity": "low"}}), ("/v1/responses", {"input": "a", "stream_options": {}}),
        ("/v1/responses", {"input": "a", "max_output_tokens": 0}), ("/v1/responses", {"input": [{"type": "function_call_output", "call_id": "x"}]}),
        ("/v1/messages", {"messages": []}), ("/v1/messages", {"messages": [{"role": "user", "content": "a"}]}),
        ("/v1/messages", {"max_tokens": 0, "messages": [{"role": "user", "content": "a"}]}),
        ("/v1/messages", {"max_tokens": 1, "messages": [{"role": "user", "content": "a"}], "temperature": 1.5}),
        ("/v1/messages", {"max_tokens": 1, "messages": [{"role": "user", "content": "a"}], "thinking": {"type": "enabled"}}),
        ("/v1/messages", {"max_tokens": 1, "messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}),
        ("/v1/messages", {"max_tokens": 1, "messages": [{"role": "user", "content": "a"}], "tool_choice": {"type": "tool"}}),
        ("/tokenize", {}), ("/tokenize", {"prompt": "a", "messages": []}), ("/detokenize", {"tokens": [-1]}), ("/detokenize", {"tokens": [10**12]}),
    ],
)  # fmt: skip
def test_each_dialect_refuses_what_it_cannot(
    api: Running, path: str, body: dict[str, object]
) -> None:
    answer = api.post({"model": "default", **body}, path)
    assert answer.status_code == 400, answer.text


def test_a_field_twice_counts_once_and_a_huge_one_is_refused(api: Running) -> None:
    assert send(api, '"seed": 1, "seed": "x"')[0] == 400
    answer = api.post(
        {"model": "default", "prompt": "word " * 200_000}, "/v1/completions"
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (
        400,
        "context_length_exceeded",
    )


def test_a_prompt_in_an_unknown_role_or_field_is_not_quoted(api: Running) -> None:
    hidden = [
        {"messages": [{"role": text, "content": "x"}]}
        for text in (SECRET, "it's " + SECRET, SECRET * 9)
    ]
    hidden += [
        {**CHAT, "tool_choice": SECRET},
        {**CHAT, "reasoning_effort": SECRET},
        {SECRET * 9: 1, "messages": []},
    ]
    for body in hidden:
        assert SECRET not in api.post({"model": "default", **body}).text


@pytest.fixture(scope="module")
def lenient(tiny: Path) -> Iterator[Running]:
    settings = ServerSettings(port=0, is_lenient=True)
    with served(
        {"tiny": tiny}, settings, opener=lambda files, options: PacedClient()
    ) as running:
        yield running


def test_a_lenient_server_drops_unknown_fields_and_nothing_else(
    lenient: Running,
) -> None:
    message = {
        "role": "user",
        "content": [{"type": "text", "text": "x", "mood": 1}],
        "mood": "good",
    }
    assert (
        lenient.post(
            {**CHAT, "messages": [message], "colour": 1, "a": {"b": []}}
        ).status_code
        == 200
    )
    assert lenient.post({**CHAT, "messages": [message] * 100}).status_code == 200
    assert lenient.post({**CHAT, "colour": 1, "seed": "x"}).status_code == 400
    assert (
        lenient.post(
            {**CHAT, **{f"field{number}": 1 for number in range(100)}}
        ).status_code
        == 400
    )


def test_a_body_of_too_many_values_is_refused_without_reading_it(api: Running) -> None:
    for inner, status in (
        ("[]," * 60_000 + "[]", 413),
        ("1," * 1_100_000 + "1", 413),
        ("1," * 90_000 + "1", 400),
    ):
        body = f'{{"model": "default", "prompt": [{inner}]}}'.encode()
        answer = api.client.post(
            "/v1/completions",
            content=body,
            headers={"content-type": "application/json"},
        )
        assert answer.status_code == status, answer.text
    assert answer.json()["error"]["code"] == "context_length_exceeded"
