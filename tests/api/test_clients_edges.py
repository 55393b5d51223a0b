"""What agents send beside plain questions: other kinds of tools, pictures, ids, synonyms."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rvllm_local.commands.serve import alias_of
from rvllm_local.errors import ConfigError, ModelNotFoundError
from rvllm_local.server.http.settings import ServerSettings
from rvllm_local.server.models.names import ModelNames
from tests.support.api import Running, served
from tests.support.wire import CLOCK, WEATHER, open_scripted, said

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


@pytest.fixture(scope="module")
def strict(tiny: Path) -> Iterator[Running]:
    """A server over a scripted engine, with the default settings and an alias."""
    aliases = {"other": "tiny"}
    with served({"tiny": tiny}, opener=open_scripted, aliases=aliases) as running:
        yield running


@pytest.fixture(scope="module")
def lenient(tiny: Path) -> Iterator[Running]:
    """The same, with --lenient."""
    settings = ServerSettings(port=0, is_lenient=True)
    with served({"tiny": tiny}, settings, opener=open_scripted) as running:
        yield running


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": said("hello"), **fields}


def response(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "input": "say:hello", **fields}


def message(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": said("hello"), "max_tokens": 50, **fields}


def ok(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(answer: httpx.Response, words: str, field: str | None = None) -> Any:
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert words in error["message"]
    if field is not None:
        assert error["param"] == field
    return error


class TestTools:
    """Kinds that the server cannot run are left out, in every mode and dialect."""

    TOOLS = {
        CHAT: [
            {"type": "function", "function": CLOCK},
            {"type": "custom", "custom": {"name": "patch"}},
            {"type": "wizardry", "x": {"y": 1}},
        ],
        RESPONSES: [
            {"type": "function", **CLOCK},
            {"type": "web_search", "external_web_access": True},
            {
                "type": "namespace",
                "name": "n",
                "tools": [{"type": "function", **WEATHER}],
            },
        ],
        MESSAGES: [
            {"name": "clock", "input_schema": {"type": "object"}},
            {"type": "web_search_20250305", "name": "web_search", "max_uses": 3},
            {"type": "mcp_toolset", "mcp_server_name": "s"},
        ],
    }
    BODIES = {CHAT: chat, RESPONSES: response, MESSAGES: message}
    LEFT_OUT = {
        CHAT: "tools[1] (custom); tools[2] (...)",
        RESPONSES: "tools[1] (web_search); tools[2] (namespace)",
        MESSAGES: "tools[1] (web_search); tools[2] (mcp_toolset)",
    }

    @pytest.mark.parametrize("path", TOOLS)
    @pytest.mark.parametrize("mode", ["strict", "lenient"])
    def test_others_are_left_out_and_named(
        self, path: str, mode: str, request: pytest.FixtureRequest
    ) -> None:
        running: Running = request.getfixturevalue(mode)
        body = self.BODIES[path](tools=self.TOOLS[path])
        answer = running.post(body, path)
        ok(answer)
        assert answer.headers["x-rvllm-left-out"] == self.LEFT_OUT[path]
        assert "x-rvllm-left-out" not in running.post(self.BODIES[path](), path).headers

    @pytest.mark.parametrize(
        ("path", "choice"),
        [
            (CHAT, {"type": "custom", "custom": {"name": "patch"}}),
            (CHAT, {"type": "function", "function": {"name": "patch"}}),
            (RESPONSES, {"type": "web_search"}),
            (MESSAGES, {"type": "tool", "name": "web_search"}),
        ],
    )
    def test_to_demand_one_is_an_error(
        self, strict: Running, path: str, choice: Any
    ) -> None:
        body = self.BODIES[path](tools=self.TOOLS[path], tool_choice=choice)
        error = refused(strict.post(body, path), "only functions reach the model")
        assert "clock" in error["message"]

    @pytest.mark.parametrize("path", TOOLS)
    def test_to_demand_any_of_none_is_an_error(
        self, strict: Running, path: str
    ) -> None:
        choice: Any = {"type": "any"} if path == MESSAGES else "required"
        body = self.BODIES[path](tools=self.TOOLS[path][1:], tool_choice=choice)
        refused(strict.post(body, path), "tool_choice demands a tool")

    def test_allowed_tools_narrow_the_functions(self, strict: Running) -> None:
        allowed = {"mode": "required", "tools": [{"type": "function", "name": "clock"}]}
        tools = [{"type": "function", **CLOCK}, {"type": "function", **WEATHER}]
        choice = {"type": "allowed_tools", **allowed}
        body = response(tools=tools, tool_choice=choice)
        ok(strict.post(body, RESPONSES))
        choice["mode"] = "perhaps"
        refused(strict.post(body, RESPONSES), "use one of auto, required")

    def test_a_function_is_still_read_strictly(self, strict: Running) -> None:
        tool = {"type": "function", **CLOCK, "frobnicate": 1}
        refused(
            strict.post(response(tools=[tool]), RESPONSES),
            "unknown field 'tools[0].frobnicate'",
            "tools[0].frobnicate",
        )


class TestNeutralFields:
    """Fields of known clients that ask for nothing change nothing."""

    def test_claude_keeps_all_thoughts(self, strict: Running) -> None:
        edit = {"type": "clear_thinking_20251015", "keep": "all"}
        ok(strict.post(message(context_management={"edits": [edit]}), MESSAGES))
        edit = {"type": "clear_tool_uses_20250919"}
        refused(
            strict.post(message(context_management={"edits": [edit]}), MESSAGES),
            "context_management.edits[0] is not supported",
        )

    def test_client_metadata_is_taken(self, strict: Running) -> None:
        ok(strict.post(response(client_metadata={"a": "b"}), RESPONSES))
        ok(strict.post(chat(client_metadata={"a": "b"})))

    @pytest.mark.parametrize(
        ("field", "value", "allowed"),
        [
            ("store", True, "give false"),
            ("service_tier", "flex", '"auto", "default"'),
            ("functions", [{}], "give []"),
            ("moderation", {"model": "m"}, "leave it out"),
        ],
    )
    def test_a_value_that_asks_for_more_is_refused(
        self, strict: Running, field: str, value: Any, allowed: str
    ) -> None:
        refused(strict.post(chat(**{field: value})), allowed, field)

    def test_the_billing_line_does_not_change_the_prompt(self, strict: Running) -> None:
        system = [{"type": "text", "text": "x-anthropic-billing-header: cch=1234;"}]
        system += [{"type": "text", "text": "Be brief."}]
        path = f"{MESSAGES}/count_tokens"
        body = {"model": "tiny", "messages": said("hello")}
        with_line = strict.post({**body, "system": system}, path)
        without = strict.post({**body, "system": "Be brief."}, path)
        assert ok(with_line) == ok(without)
        told = with_line.headers["x-rvllm-left-out"]
        assert told == "system[0] (billing header)"

    def test_explain_names_the_rule_that_left_it_out(self, api: Running) -> None:
        system = [{"type": "text", "text": "x-anthropic-billing-header: cch=1234;"}]
        answer = ok(api.post(message(model="tiny", system=system), MESSAGES))
        explained = api.client.get(f"/v1/engine/explain/{answer['id']}").json()
        assert explained["left_out"] == ["system[0] (billing header)"]


class TestStateElsewhere:
    """A request whose input is elsewhere is never answered as if it were whole."""

    def test_a_thread_is_refused_as_its_client_expects(self, lenient: Running) -> None:
        body = message(thread={"type": "create"})
        error = refused(lenient.post(body, MESSAGES), "thread is not supported")
        assert error["details"] == {"error_code": "thread_unsupported_request"}

    @pytest.mark.parametrize("field", ["conversation_id", "thread_id", "session_id"])
    def test_lenient_does_not_drop_it(self, lenient: Running, field: str) -> None:
        refused(lenient.post(chat(**{field: "x"})), "send the whole input", field)
        ok(lenient.post(chat(**{field: None})))

    def test_conversations_and_prompts_are_refused(self, lenient: Running) -> None:
        for field in ("conversation", "prompt"):
            body = response(**{field: {"id": "x"}})
            refused(lenient.post(body, RESPONSES), f"{field} is not supported", field)

    def test_items_are_accepted_back_by_their_ids(self, strict: Running) -> None:
        first = ok(strict.post(response(input="say:thought"), RESPONSES))
        references = [
            {"type": "item_reference", "id": item["id"]} for item in first["output"]
        ]
        asked = {"role": "user", "content": "say:hello"}
        body = response(input=[asked, *references, asked])
        second = ok(strict.post(body, RESPONSES))
        given = response(input=[asked, *first["output"], asked])
        third = ok(strict.post(given, RESPONSES))
        assert second["usage"]["input_tokens"] == third["usage"]["input_tokens"]
        rows = strict.client.get(f"{RESPONSES}/{first['id']}/input_items").json()[
            "data"
        ]
        body = response(input=[{"id": rows[0]["id"]}, *references])
        ok(strict.post(body, RESPONSES))

    def test_an_item_that_was_deleted_is_named(self, strict: Running) -> None:
        first = ok(strict.post(response(), RESPONSES))
        strict.client.delete(f"{RESPONSES}/{first['id']}")
        reference = {"type": "item_reference", "id": first["output"][0]["id"]}
        refused(
            strict.post(response(input=[reference]), RESPONSES),
            "send the item itself",
            "input[0].id",
        )

    def test_input_tokens_are_those_of_the_answer(self, strict: Running) -> None:
        tools = [{"type": "function", **WEATHER}]
        body = response(tools=tools, instructions="Be brief.")
        counted = ok(strict.post(body, f"{RESPONSES}/input_tokens"))
        answer = ok(strict.post(body, RESPONSES))
        assert counted["object"] == "response.input_tokens"
        assert counted["input_tokens"] == answer["usage"]["input_tokens"]

    def test_only_an_open_response_can_be_cancelled(self, strict: Running) -> None:
        first = ok(strict.post(response(), RESPONSES))
        path = f"{RESPONSES}/{first['id']}/cancel"
        refused(strict.post({}, path), "this response has ended")
        assert strict.post({}, f"{RESPONSES}/resp_x/cancel").status_code == 404

    def test_an_open_response_is_cancelled(self, paced: Running) -> None:
        body = response(model="default", input="x", max_output_tokens=5000, stream=True)
        with paced.client.stream("POST", RESPONSES, json=body) as stream:
            lines = stream.iter_lines()
            first = next(line for line in lines if line.startswith("data: "))
            response_id = first.split('"id":"')[1].split('"')[0]
            with httpx.Client(base_url=paced.client.base_url, timeout=240) as other:
                answer = other.post(f"{RESPONSES}/{response_id}/cancel", json={})
            assert ok(answer)["status"] == "cancelled"
            assert any("response.failed" in line for line in lines)


class TestPictures:
    """A picture that a tool showed does not end the session."""

    def bodies(self, part: Any) -> dict[str, dict[str, Any]]:
        """A tool's result that holds the part, in each dialect's form."""
        function = {"name": "look", "arguments": "{}"}
        call = {"id": "c", "type": "function", "function": function}
        source = {"type": "base64", "media_type": "image/png", "data": "AA=="}
        asked = {"role": "user", "content": "look"}
        result = {
            "type": "tool_result",
            "tool_use_id": "c",
            "content": [{"type": "image", "source": source}],
        }
        called = {"call_id": "c", "name": "look", "arguments": "{}"}
        output = [{"type": "input_image", "image_url": "data:,"}]
        use = {"type": "tool_use", "id": "c", "name": "look", "input": {}}
        return {
            CHAT: chat(
                messages=[
                    asked,
                    {"role": "assistant", "content": None, "tool_calls": [call]},
                    {"role": "tool", "tool_call_id": "c", "content": [part]},
                ]
            ),
            RESPONSES: response(
                input=[
                    asked,
                    {"type": "function_call", **called},
                    {"type": "function_call_output", "call_id": "c", "output": output},
                ]
            ),
            MESSAGES: message(
                messages=[
                    asked,
                    {"role": "assistant", "content": [use]},
                    {"role": "user", "content": [result]},
                ]
            ),
        }

    @pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
    def test_a_text_stands_in_a_result(self, strict: Running, path: str) -> None:
        answer = strict.post(self.bodies(PICTURE)[path], path)
        ok(answer)
        assert "image" in answer.headers["x-rvllm-left-out"]

    def test_a_users_own_is_refused_unless_lenient(
        self, strict: Running, lenient: Running
    ) -> None:
        text = {"type": "text", "text": "what is this? say:hello"}
        body = chat(messages=[{"role": "user", "content": [text, PICTURE]}])
        refused(strict.post(body), "leave the picture out", "messages[0].content[1]")
        answer = lenient.post(body)
        ok(answer)
        told = answer.headers["x-rvllm-left-out"]
        assert told == "messages[0].content[1] (image_url)"


class TestSynonyms:
    """Fields of other servers that have a meaning here get it."""

    @pytest.mark.parametrize(
        "fields",
        [
            {"enable_thinking": False},
            {"thinking": {"type": "disabled"}},
            {"reasoning": {"enabled": False}},
            {"reasoning": {"effort": "none"}},
            {"think": False},
            {"reasoning_effort": "none"},
            {"chat_template_kwargs": {"enable_thinking": False}},
        ],
        ids=str,
    )
    def test_every_switch_ends_thinking(
        self, strict: Running, fields: dict[str, Any]
    ) -> None:
        plain = ok(strict.post(chat()))["usage"]["prompt_tokens"]
        switched = ok(strict.post(chat(**fields)))["usage"]["prompt_tokens"]
        # The template closes the thought before it begins.
        assert switched > plain

    def test_switches_that_disagree_are_refused(self, strict: Running) -> None:
        body = chat(enable_thinking=False, reasoning_budget=100)
        refused(strict.post(body), "different amounts of thinking", "reasoning_budget")

    @pytest.mark.parametrize(
        "fields",
        [
            {"max_tokens": -1},
            {"num_predict": 20},
            {"top_k": -1},
            {"repeat_penalty": 1.1},
            {"min_tokens": 0, "stop_token_ids": []},
            {"structured_outputs": {"choice": ["a", "b"]}},
            {"tool_choice": "auto"},
        ],
        ids=str,
    )
    def test_others_are_taken(self, strict: Running, fields: dict[str, Any]) -> None:
        ok(strict.post(chat(**fields)))

    def test_many_stop_strings_are_taken(self, strict: Running) -> None:
        ok(strict.post(chat(stop=[f"stop{number}" for number in range(64)])))

    def test_many_tools_with_long_names_are_taken(self, strict: Running) -> None:
        tools = [
            {"type": "function", "function": {"name": f"{number:0128}"}}
            for number in range(512)
        ]
        ok(strict.post(chat(messages=said("hello")[:1], tools=tools[:8])))
        error = refused(strict.post(chat(tools=tools)), "maximum context length")
        assert error["code"] == "context_length_exceeded"


class TestErrors:
    """Errors say what to do, in the words that clients look for."""

    def test_an_overflow_has_both_numbers(self, strict: Running) -> None:
        long = "x" * 3000
        error = refused(strict.post(chat(messages=said(long))), "2048 tokens")
        assert error["code"] == "context_length_exceeded"
        body = message(messages=said(long))
        refused(strict.post(body, MESSAGES), "prompt is too long: 3022 tokens > 2047")

    def test_words_that_are_allowed_are_listed(self, strict: Running) -> None:
        body = chat(reasoning_effort="hard")
        refused(strict.post(body), "reasoning_effort: use one of", "reasoning_effort")
        body = message(tool_choice={"type": "perhaps"})
        refused(strict.post(body, MESSAGES), "use one of any, auto, none, tool")
        refused(strict.post(chat(tool_choice="perhaps")), "use none, auto, required")

    @pytest.mark.parametrize(
        ("path", "words"),
        [
            ("/chat/completions", "did you mean /v1/chat/completions?"),
            ("/v1/v1/messages", "did you mean /v1/messages?"),
            ("/v1/tokenize", "did you mean /tokenize?"),
        ],
    )
    def test_a_wrong_path_says_the_right_one(
        self, strict: Running, path: str, words: str
    ) -> None:
        answer = strict.post({}, path)
        assert answer.status_code == 404
        assert words in answer.json()["error"]["message"]

    def test_a_model_that_is_not_fetched_says_how(self, strict: Running) -> None:
        answer = strict.post(chat(model="smollm2-135m"))
        assert answer.status_code == 404
        assert "rvllm pull smollm2-135m" in answer.json()["error"]["message"]

    @pytest.mark.parametrize(
        "name",
        [
            "tiny:latest",
            "other",
            "other:latest",
            "claude-haiku-4-5-20251001",
            "default",
        ],
    )
    def test_other_names_mean_a_model(self, strict: Running, name: str) -> None:
        assert ok(strict.post(chat(model=name)))["model"] == "tiny"

    def test_a_model_need_not_be_named(self, strict: Running) -> None:
        body = chat()
        del body["model"]
        assert ok(strict.post(body))["model"] == "tiny"

    @pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
    def test_no_model_is_the_default(self, strict: Running, path: str) -> None:
        make = {CHAT: chat, RESPONSES: response, MESSAGES: message}[path]
        assert ok(strict.post(make(model=None), path))["model"] == "tiny"


class TestTraces:
    """What was dropped or refused is told, and never with content."""

    def test_dropped_fields_are_told(
        self, lenient: Running, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        answer = lenient.post(chat(frobnicate="secret", user="u"))
        ok(answer)
        assert answer.headers["x-rvllm-left-out"] == "frobnicate"
        assert "left out frobnicate" in caplog.text and "secret" not in caplog.text

    def test_a_refusal_is_in_the_log(
        self, tiny: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        # A server of its own: only the first refusals are told one by one.
        with served({"tiny": tiny}, opener=open_scripted) as running:
            running.post(chat(frobnicate="secret"))
        told = f"{CHAT} refused: 400 unknown_field, field frobnicate"
        assert told in caplog.text and "secret" not in caplog.text

    def test_every_answer_is_counted(self, strict: Running) -> None:
        def count(status: int) -> float:
            text = strict.client.get("/metrics").text
            row = f'rvllm_http_responses_total{{status="{status}"}} '
            rows = [line for line in text.splitlines() if line.startswith(row)]
            return float(rows[0].removeprefix(row)) if rows else 0.0

        before = {status: count(status) for status in (400, 403, 404, 405, 415)}
        strict.post(chat(frobnicate=1))
        strict.client.get("/v1/models", headers={"origin": "https://a.example"})
        strict.client.get("/nowhere")
        strict.client.get(CHAT)
        headers = {"content-type": "text/plain"}
        strict.client.post(CHAT, content="{}", headers=headers)
        assert {status: count(status) - 1 for status in before} == before


class TestModels:
    """Every installed model says how long its context is, loaded or not."""

    def test_a_model_that_is_not_loaded_says_its_context(self, tiny: Path) -> None:
        with served({"tiny": tiny, "idle": tiny}, opener=open_scripted) as running:
            rows = running.client.get("/v1/models").json()["data"]
            assert {row["id"]: row["context_length"] for row in rows} == {
                "tiny": 2048,
                "idle": 2048,
            }
            assert running.client.get("/v1/models/idle").json()["state"] == "idle"

    def test_an_alias_must_mean_a_model(self, tiny: Path) -> None:
        names = ModelNames(["tiny"], "tiny", {"small": "tiny"})
        assert names.resolve("small") == "tiny"
        with pytest.raises(ModelNotFoundError, match="which is not one of tiny"):
            ModelNames(["tiny"], "tiny", {"small": "large"})

    @pytest.mark.parametrize("text", ["small", "=tiny", "small=", "a b=tiny"])
    def test_an_alias_flag_has_two_names(self, text: str) -> None:
        assert alias_of("small=tiny") == ("small", "tiny")
        with pytest.raises(ConfigError, match="must be NAME=MODEL"):
            alias_of(text)
