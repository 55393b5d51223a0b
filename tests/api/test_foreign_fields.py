"""Fields of other servers: neutral ones are taken, others have their meaning or a 400."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rvllm_local.conversation.reading import Reading
from rvllm_local.conversation.requests import read_messages
from rvllm_local.conversation.schema import ChatMessage
from tests.support.api import Running, served
from tests.support.wire import open_scripted, said

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
END = 0  # the tiny model's end token
SALTY = {
    "type": "object",
    "properties": {"salty": {"type": "boolean"}},
    "required": ["salty"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def scripted(tiny: Path) -> Iterator[Running]:
    """A server over a scripted engine."""
    with served({"tiny": tiny}, opener=open_scripted) as running:
        yield running


def body(path: str, **fields: Any) -> dict[str, Any]:
    """A request of a few words; `fields` go before what stands here."""
    heads: dict[str, dict[str, Any]] = {
        CHAT: {"messages": said("hello"), "max_tokens": 8},
        TEXT: {"prompt": "say:hello", "max_tokens": 8},
        RESPONSES: {"input": "say:hello", "max_output_tokens": 8},
        MESSAGES: {"messages": said("hello"), "max_tokens": 8},
    }
    return {"model": "default", **heads[path], **fields}


def ask(running: Running, path: str = CHAT, **fields: Any) -> Any:
    """The answer, which has to be one."""
    answer = running.post(body(path, **fields), path)
    assert answer.status_code == 200, answer.text
    return answer.json()


def content(answer: Any) -> str:
    """The text of a chat's answer."""
    text: str = answer["choices"][0]["message"]["content"]
    return text


class TestNeutral:
    """What asks for nothing is taken; what asks for more is refused by name."""

    @pytest.mark.parametrize(
        "fields",
        [
            # vLLM and SGLang
            {"skip_special_tokens": True, "spaces_between_special_tokens": True},
            {"include_stop_str_in_output": False, "use_beam_search": False},
            {"length_penalty": 1.0, "bad_words": [], "request_id": "mine"},
            {"add_generation_prompt": True, "add_special_tokens": False},
            {"echo": False, "best_of": 1, "documents": [], "prompt_logprobs": None},
            {"separate_reasoning": True, "kv_transfer_params": None},
            # llama.cpp
            {"cache_prompt": True, "id_slot": -1, "n_keep": 0, "typical_p": 1.0},
            {"mirostat": 0, "mirostat_tau": 5, "mirostat_eta": 0.1, "tfs_z": 1},
            {"dry_multiplier": 0, "dry_base": 1.75, "xtc_probability": 0.0},
            {"reasoning_format": "auto", "timings_per_token": False, "n_probs": 0},
            # gateways and makers
            {"transforms": [], "plugins": [], "models": [], "top_a": 0},
            {"safe_prompt": False, "nvext": {}, "metadata": {"number": 1}},
            {"usage": {"include": True}, "include_reasoning": True},
            {"top_logprobs": 0, "logprobs": False},
            {"max_tokens": 8, "max_completion_tokens": 8},
            {"some_field_of_tomorrow": None},
        ],
        ids=lambda fields: next(iter(fields)),
    )
    def test_it_is_taken(self, scripted: Running, fields: dict[str, Any]) -> None:
        plain, other = ask(scripted), ask(scripted, **fields)
        assert content(other) == content(plain)
        assert other["usage"] == plain["usage"]

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"skip_special_tokens": False}, "leave it out, or give true"),
            ({"truncate_prompt_tokens": 5}, "leave it out"),
            ({"mirostat": 2}, "give 0"),
            ({"reasoning_format": "none"}, '"auto", "deepseek", "parsed"'),
            ({"repeat_last_n": 64}, "give -1"),
            ({"allowed_token_ids": [1]}, "give []"),
            ({"add_special_tokens": True}, "give false"),
            ({"add_generation_prompt": False}, "needs continue_final_message"),
            (
                {"max_tokens": 8, "n_predict": 9},
                "max_tokens and n_predict say the same",
            ),
            ({"cache_salt": "x"}, "unknown field 'cache_salt'"),
            ({"session_id": "x"}, "send the whole input"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_more_is_refused(
        self, scripted: Running, fields: dict[str, Any], words: str
    ) -> None:
        answer = scripted.post(body(CHAT, **fields))
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert words in error["message"]
        assert error["param"] in fields

    def test_hints_about_the_servers_ways_are_left_out_and_told(
        self, scripted: Running
    ) -> None:
        hints = {"ttl": 300, "keep_alive": "5m", "num_ctx": 4096, "provider": {"a": 1}}
        answer = scripted.post(body(CHAT, **hints))
        assert answer.status_code == 200
        told = answer.headers["x-rvllm-left-out"].split("; ")
        assert sorted(told) == sorted(hints)

    def test_other_dialects_take_them_too(self, scripted: Running) -> None:
        ask(scripted, TEXT, store=False, cache_prompt=True, suffix="", n_probs=0)
        ask(scripted, RESPONSES, max_tool_calls=3, metadata={"a": 1})
        ask(scripted, MESSAGES, anthropic_version="x", top_k=-1)

    def test_parts_of_a_conversation_too(self, scripted: Running) -> None:
        function = {"name": "clock", "arguments": "{}"}
        call = {"id": "c", "type": "function", "function": function}
        call["extra_content"] = {"google": {"thought_signature": "x"}}
        labelled = {"id": "m1", "cache_control": {"type": "ephemeral"}}
        messages = [
            {"role": "user", "content": "hi", "images": [], **labelled},
            {"role": "assistant", "tool_calls": [call], "provider_specific_fields": {}},
            {"role": "tool", "tool_call_id": "c", "content": "noon"},
        ]
        tool = {"type": "function", "function": {"name": "clock"}, "strict": False}
        ask(scripted, messages=messages, tools=[{**tool, "cache_control": {}}])


class TestMeanings:
    """What has a meaning here gets it, whatever the field is called."""

    @pytest.mark.parametrize("path", [CHAT, TEXT])
    @pytest.mark.parametrize("name", ["num_predict", "n_predict"])
    def test_lengths(self, api: Running, path: str, name: str) -> None:
        fields = {"max_tokens": None, name: 3, "ignore_eos": True}
        assert ask(api, path, **fields)["usage"]["completion_tokens"] == 3

    @pytest.mark.parametrize("path", [CHAT, TEXT])
    def test_no_bound(self, api: Running, path: str) -> None:
        fields = {"max_tokens": -1, "guided_regex": "[ab]{30}"}
        assert ask(api, path, **fields)["choices"][0]["finish_reason"] == "stop"

    @pytest.mark.parametrize(
        ("path", "output"),
        [
            (CHAT, "completion_tokens"),
            (TEXT, "completion_tokens"),
            (RESPONSES, "output_tokens"),
        ],
    )
    def test_ends(self, api: Running, path: str, output: str) -> None:
        biased: dict[str, Any] = {"logit_bias": {str(END): 100}}
        count = 0
        if path == RESPONSES:  # where nothing can be biased, an end is a chosen token
            for seed in range(50):
                biased = {"stop_token_ids": list(range(3, 67)), "seed": seed}
                count = ask(api, path, **biased)["usage"][output]
                if count < 5:
                    break
        else:
            count = ask(api, path, **biased)["usage"][output]
        later = ask(api, path, **biased, min_tokens=5)["usage"][output]
        assert count < later
        assert later >= 5
        stopped = {"logit_bias": {"7": 100}, "stop_token_ids": [7]}
        if path != RESPONSES:
            assert ask(api, path, **stopped)["usage"][output] == 1

    def test_ends_that_cannot_be(self, api: Running) -> None:
        for fields, words in (
            ({"min_tokens": 9}, "min_tokens is 9, more than the 8 of max_tokens"),
            ({"stop_token_ids": [9999]}, "outside the vocabulary"),
            ({"stop_token_ids": list(range(65))}, "at most 64"),
        ):
            answer = api.post(body(CHAT, **fields))
            assert answer.status_code == 400
            error = answer.json()["error"]
            assert words in error["message"]
            assert error["param"] in fields

    @pytest.mark.parametrize(
        "pair",
        [
            ({"repeat_penalty": 1.7}, {"repetition_penalty": 1.7}),
            ({"top_k": -1}, {"top_k": 0}),
            ({"random_seed": 5, "seed": None}, {"seed": 5}),
            ({"top_p": 0}, {"temperature": 0}),
        ],
        ids=str,
    )
    def test_synonyms_draw_the_same_tokens(
        self, api: Running, pair: tuple[dict[str, Any], dict[str, Any]]
    ) -> None:
        texts = []
        for fields in pair:
            whole = {"temperature": 1, "seed": 3, "ignore_eos": True, **fields}
            texts.append(ask(api, TEXT, **whole)["choices"][0]["text"])
        assert texts[0] == texts[1]

    @pytest.mark.parametrize(
        "fields",
        [
            {"structured_outputs": {"json": SALTY}},
            {"structured_outputs": {"json": json.dumps(SALTY), "regex": None}},
            {"structured_outputs": {"json": SALTY, "disable_any_whitespace": False}},
            {"guided_json": json.dumps(SALTY)},
            {"json_schema": SALTY},
            {"response_format": {"type": "json_object", "schema": SALTY}},
            {"response_format": {"type": "json_schema", "schema": SALTY}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": SALTY},
                }
            },
        ],
        ids=str,
    )
    @pytest.mark.parametrize("path", [CHAT, TEXT])
    def test_schemas(self, api: Running, path: str, fields: dict[str, Any]) -> None:
        if path == CHAT:
            fields = {**fields, "reasoning_budget": 0}
        choice = ask(api, path, max_tokens=300, **fields)["choices"][0]
        text = choice["text"] if path == TEXT else choice["message"]["content"]
        assert list(json.loads(text)) == ["salty"]

    @pytest.mark.parametrize(
        ("fields", "pattern"),
        [
            ({"structured_outputs": {"regex": "[ab]{3}"}}, "[ab]{3}"),
            ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes|no"),
            ({"structured_outputs": {"grammar": 'start: "x" /[0-9]/'}}, "x[0-9]"),
            ({"regex": "[cd]{2}"}, "[cd]{2}"),
        ],
        ids=str,
    )
    def test_other_formats(
        self, api: Running, fields: dict[str, Any], pattern: str
    ) -> None:
        # Drawn at random, the model may think until it is cut.
        whole = ask(api, max_tokens=20, reasoning_budget=0, **fields)
        assert re.fullmatch(pattern, content(whole))

    def test_any_object(self, api: Running) -> None:
        text = content(ask(api, structured_outputs={"json_object": True}))
        assert text.lstrip()[:1] in ("{", "")

    def test_a_format_that_is_none_is_refused(self, api: Running) -> None:
        for fields in (
            {"structured_outputs": {"json": SALTY, "regex": "a"}},
            {"structured_outputs": {"structural_tag": "{}"}},
            {"guided_json": "no schema"},
            {"guided_json": SALTY, "regex": "a"},
        ):
            answer = api.post(body(CHAT, **fields))
            assert answer.status_code == 400
            assert answer.json()["error"]["param"].split(".")[0] in fields

    def test_a_budget_of_no_thought_closes_it(self, scripted: Running) -> None:
        budget = ask(scripted, thinking_budget=0)["usage"]["prompt_tokens"]
        switch = ask(scripted, enable_thinking=False)["usage"]["prompt_tokens"]
        assert budget == switch

    @pytest.mark.parametrize(
        "fields", [{"include_reasoning": False}, {"reasoning": {"exclude": True}}]
    )
    def test_thoughts_are_hidden(
        self, scripted: Running, fields: dict[str, Any]
    ) -> None:
        asked = {"messages": said("thought"), "max_tokens": 100}
        shown = ask(scripted, **asked)["choices"][0]["message"]
        hidden = ask(scripted, **asked, **fields)["choices"][0]["message"]
        assert shown.pop("reasoning_content") == "Is it salty?"
        assert hidden == shown
        streamed = scripted.post(body(CHAT, **asked, **fields, stream=True)).text
        assert "reasoning_content" not in streamed
        pieces = re.findall(r'"delta": \{"content": "([^"]*)"\}', streamed)
        assert "".join(pieces) == shown["content"]

    def test_a_developer_is_the_system(self, scripted: Running) -> None:
        counts = []
        for role in ("developer", "system"):
            messages = [{"role": role, "content": "Be brief."}, *said("hello")]
            usage = ask(scripted, messages=messages)["usage"]
            counts.append(usage["prompt_tokens"])
        assert counts[0] == counts[1]

    @pytest.mark.parametrize("name", ["prefix", "partial"])
    def test_an_answer_goes_on_from_a_prefix(
        self, scripted: Running, name: str
    ) -> None:
        last = {"role": "assistant", "content": "Well,"}
        flag = ask(scripted, messages=[*said("hello"), {**last, name: True}])
        field = ask(
            scripted,
            messages=[*said("hello"), last],
            continue_final_message=True,
            add_generation_prompt=False,
        )
        assert flag["usage"]["prompt_tokens"] == field["usage"]["prompt_tokens"]
        early = [{**last, name: True}, *said("hello")]
        answer = scripted.post(body(CHAT, messages=early))
        assert answer.status_code == 400
        assert "only the last message" in answer.json()["error"]["message"]

    @pytest.mark.parametrize(
        "fields",
        [
            {"reasoning": "It is."},
            {"thinking": "It is."},
            {"reasoning_details": [{"type": "reasoning.text", "text": "It is."}]},
            {"thinking_blocks": [{"type": "thinking", "thinking": "It is."}]},
        ],
        ids=str,
    )
    def test_earlier_thoughts_are_read(self, fields: dict[str, Any]) -> None:
        row = {"role": "assistant", "content": "Yes.", **fields}
        (message,) = read_messages([msgspec.convert(row, ChatMessage)], Reading())
        assert message["reasoning_content"] == "It is."

    def test_a_stream_tells_its_usage(self, scripted: Running) -> None:
        text = scripted.post(body(CHAT, usage={"include": True}, stream=True)).text
        assert '"prompt_tokens"' in text
