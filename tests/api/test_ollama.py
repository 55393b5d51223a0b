"""Ollama's API: lines of JSON, whole answers, models by name and tag, and refusals."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from rvllm_local.commands.serve import settings_from
from rvllm_local.commands.verbs import build_parser
from rvllm_local.errors import ConfigError
from rvllm_local.models.locate import ModelFiles
from rvllm_local.server.api.ollama.durations import FOREVER, keep_alive_seconds
from rvllm_local.server.api.ollama.pulls import Pull
from rvllm_local.server.http.problems import Problem
from rvllm_local.server.http.settings import ServerSettings
from rvllm_local.server.listener import bound
from rvllm_local.text.tokenizer_files import read_tokenizer
from tests.support.api import Running, served
from tests.support.ports import spare_ports
from tests.support.scripted import ScriptedClient

CHAT, GENERATE = "/api/chat", "/api/generate"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@pytest.fixture(scope="module")
def api(tiny: Path) -> Iterator[Running]:
    """A server over an engine that speaks from a script."""
    tokenizer = read_tokenizer(ModelFiles("folder", tiny, "tiny"))

    def opener(files: Any, options: Any) -> ScriptedClient:
        return ScriptedClient(tokenizer)

    with served({"tiny": tiny, "other": tiny}, opener=opener) as running:
        yield running


def chat(word: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"say:{word}"}]
    return {"model": "tiny", "messages": messages, **fields}


def lines(api: Running, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = api.post(body, path)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.text.endswith("\n")
    return [json.loads(line) for line in answer.text.splitlines()]


def whole(api: Running, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = api.post({**body, "stream": False}, path)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return dict(answer.json())


def refusal(
    api: Running,
    path: str,
    body: dict[str, Any],
    status: int = 400,
    method: str = "POST",
) -> str:
    answer = api.client.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    return str(answer.json()["error"])


FIGURES = [
    "done", "done_reason", "total_duration", "load_duration", "prompt_eval_count",
    "prompt_eval_duration", "eval_count", "eval_duration",
]  # fmt: skip


class TestChat:
    def test_a_stream_is_a_line_for_each_piece_and_a_last_one_with_figures(
        self, api: Running
    ) -> None:
        *parts, last = lines(api, CHAT, chat("hello"))
        for part in parts:
            assert list(part) == ["model", "created_at", "message", "done"]
            assert part["message"]["role"] == "assistant" and part["done"] is False
        text = "".join(part["message"]["content"] for part in parts)
        assert text == "Hello by the sea."
        assert list(last) == ["model", "created_at", "message", *FIGURES]
        assert last["message"] == {"role": "assistant", "content": ""}
        assert (last["done"], last["done_reason"]) == (True, "stop")
        durations = [last[name] for name in FIGURES if name.endswith("_duration")]
        assert durations[0] == sum(durations[1:]) and min(durations) >= 0
        assert last["prompt_eval_count"] > 0 and last["eval_count"] > 0

    def test_a_whole_answer_is_one_object(self, api: Running) -> None:
        answer = whole(api, CHAT, chat("hello", model="tiny:latest"))
        assert answer["model"] == "tiny:latest"
        assert answer["message"]["content"] == "Hello by the sea."
        assert list(answer) == ["model", "created_at", "message", *FIGURES]

    def test_an_answer_that_is_cut_says_so(self, api: Running) -> None:
        answer = whole(api, CHAT, chat("hello", options={"num_predict": 2}))
        assert answer["done_reason"] == "length" and answer["eval_count"] == 2

    def test_thoughts_are_apart(self, api: Running) -> None:
        parts = lines(api, CHAT, chat("thought", think=True))
        thinking = "".join(part["message"].get("thinking", "") for part in parts)
        text = "".join(part["message"]["content"] for part in parts)
        assert (thinking, text.strip()) == ("Is it salty?", "Yes, it is.")
        message = whole(api, CHAT, chat("thought"))["message"]
        assert message["thinking"] == "Is it salty?"

    @pytest.mark.parametrize("think", [False, "low", "medium", "high", "max"])
    def test_thinking_has_levels(self, api: Running, think: Any) -> None:
        assert whole(api, CHAT, chat("hello", think=think))["done"] is True

    def test_calls_come_whole_with_their_arguments_as_objects(
        self, api: Running
    ) -> None:
        clock = {"type": "function", "function": {"name": "clock"}}
        body = chat("calls", tools=[WEATHER, clock])
        calls = [
            call["function"]
            for part in lines(api, CHAT, body)
            for call in part["message"].get("tool_calls", ())
        ]
        assert calls == [
            {"index": 0, "name": "weather", "arguments": {"city": "Rome"}},
            {"index": 1, "name": "clock", "arguments": {}},
        ]
        message = whole(api, CHAT, body)["message"]
        assert [call["function"] for call in message["tool_calls"]] == calls
        assert message["thinking"] == "Two."

    def test_results_go_back_by_name_or_in_order(self, api: Running) -> None:
        function = {"name": "weather", "arguments": {"city": "Rome"}}
        history = [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "tool_calls": [{"function": function}]},
            {"role": "tool", "content": "sunny", "tool_name": "weather"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"function": function}],
            },
            {"role": "tool", "content": "rainy", "images": ["aGk="]},
            {"role": "user", "content": "say:hello"},
        ]
        body = {"model": "tiny", "messages": history, "tools": [WEATHER]}
        answer = api.post({**body, "stream": False}, CHAT)
        assert answer.json()["message"]["content"] == "Hello by the sea."
        assert "messages[4].images[0]" in answer.headers["x-rvllm-left-out"]

    def test_a_format_is_json_or_a_schema(self, api: Running) -> None:
        schema = {"type": "object", "properties": {"salty": {"type": "boolean"}}}
        for form in ("json", schema, "", None):
            answer = whole(api, CHAT, chat("json", format=form))
            assert answer["message"]["content"] == '{"salty": true}'
        assert "format" in refusal(api, CHAT, chat("json", format="xml"))

    def test_log_probabilities(self, api: Running) -> None:
        body = chat("hello", logprobs=True, top_logprobs=2)
        rows = whole(api, CHAT, body)["logprobs"]
        assert len(rows[0]["top_logprobs"]) == 2 and rows[0]["logprob"] == 0.0
        streamed = []
        for part in lines(api, CHAT, body):
            streamed += part.get("logprobs", [])
        assert streamed == rows
        assert "logprobs" in refusal(api, CHAT, chat("hello", top_logprobs=2))

    def test_a_failure_in_the_middle_is_the_last_line(self, api: Running) -> None:
        *_, last = lines(api, CHAT, chat("crash"))
        assert last == {"error": "it went wrong"}

    def test_a_refusal_before_the_first_piece_has_a_status(self, api: Running) -> None:
        answer = api.post(chat("full"), CHAT)
        assert answer.status_code == 429
        assert answer.json() == {"error": "too many requests wait; try again later"}


class TestGenerate:
    def test_a_prompt_is_a_turn(self, api: Running) -> None:
        body = {"model": "tiny", "prompt": "say:hello", "system": "Be brief."}
        *parts, last = lines(api, GENERATE, body)
        assert list(parts[0]) == ["model", "created_at", "response", "done"]
        text = "".join(part["response"] for part in parts)
        assert text == "Hello by the sea." and last["response"] == ""
        assert last["done_reason"] == "stop" and len(last["context"]) > 10

    def test_a_context_goes_on(self, api: Running) -> None:
        first = whole(api, GENERATE, {"model": "tiny", "prompt": "say:hello"})
        context = first["context"]
        assert len(context) >= first["prompt_eval_count"] + first["eval_count"]
        body = {"model": "tiny", "prompt": "say:json", "context": context}
        second = whole(api, GENERATE, body)
        assert second["context"][: len(context)] == context
        assert second["prompt_eval_count"] > len(context)
        assert second["response"] == '{"salty": true}'
        outside = {**body, "context": [10**6]}
        assert "outside the vocabulary" in refusal(api, GENERATE, outside)

    def test_a_raw_prompt_is_taken_as_it_is(self, api: Running) -> None:
        body = {"model": "tiny", "prompt": "say:hello", "raw": True}
        answer = whole(api, GENERATE, body)
        turn = whole(api, GENERATE, {"model": "tiny", "prompt": "say:hello"})
        assert answer["response"] == "Hello by the sea." and "context" not in answer
        assert answer["prompt_eval_count"] < turn["prompt_eval_count"]
        for name, value in (("system", "x"), ("context", [1])):
            text = refusal(api, GENERATE, {**body, name: value})
            assert f"has no {name}" in text

    def test_thoughts_are_apart(self, api: Running) -> None:
        body = {"model": "tiny", "prompt": "say:thought", "think": True}
        answer = whole(api, GENERATE, body)
        assert answer["thinking"] == "Is it salty?"
        assert answer["response"].strip() == "Yes, it is."

    @pytest.mark.parametrize(
        ("fields", "word"),
        [
            ({"images": ["aGk="]}, "images"), ({"template": "{{ .Prompt }}"}, "template"),
            ({"suffix": "end"}, "suffix"), ({"width": 512}, "width"),
            ({"colour": 1}, "colour"), ({"options": {"mirostat": 2}}, "mirostat"),
            ({"options": {"colour": 2}}, "colour"), ({"keep_alive": "soon"}, "keep_alive"),
            ({"options": {"num_predict": 0}}, "num_predict"),
            ({"options": {"repeat_penalty": 1.2, "repeat_last_n": 5}}, "repeat_last_n"),
            ({"options": {"temperature": -1}}, "temperature"),
            ({"options": {"top_k": "many"}}, "top_k"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_honoured_is_refused_by_name(
        self, api: Running, fields: dict[str, Any], word: str
    ) -> None:
        body = {"model": "tiny", "prompt": "say:hello", **fields}
        assert word in refusal(api, GENERATE, body)

    def test_options_at_values_that_change_nothing_are_taken(
        self, api: Running
    ) -> None:
        options = {
            "num_ctx": 131072, "num_gpu": 99, "num_thread": 4, "use_mmap": True,
            "mirostat": 0, "mirostat_tau": 5.0, "tfs_z": 1, "typical_p": 1.0,
            "top_k": -1, "top_p": 0.9, "min_p": 0, "seed": -1, "num_predict": -2,
            "repeat_penalty": 1.1, "repeat_last_n": 64, "stop": ["STOP"],
            "temperature": 0, "num_keep": None, "penalize_newline": True,
        }  # fmt: skip
        body = {"model": "tiny", "prompt": "say:stop", "options": options}
        assert whole(api, GENERATE, body)["response"] == "One, two, "


class TestLoading:
    def test_an_empty_request_loads_and_unloads(self, api: Running) -> None:
        for path in (CHAT, GENERATE):
            body = {"model": "other", "keep_alive": "1h"}
            loaded = api.post(body, path).json()
            assert (loaded["done"], loaded["done_reason"]) == (True, "load")
            assert names(api, "/api/ps") >= {"other:latest"}
            unloaded = api.post({**body, "keep_alive": 0}, path).json()
            assert unloaded["done_reason"] == "unload"
            assert "other:latest" not in names(api, "/api/ps")

    def test_a_model_that_is_loaded_says_until_when(self, api: Running) -> None:
        for keep_alive, years in (("5m", 0), (-1, 99)):
            api.post({"model": "other", "keep_alive": keep_alive}, CHAT)
            rows = api.client.get("/api/ps").json()["models"]
            row = next(row for row in rows if row["name"] == "other:latest")
            expires, now = int(row["expires_at"][:4]), int(row_time(api)[:4])
            assert years <= expires - now <= years + 1
            assert row["size"] > 0 and row["context_length"] == 2048
        api.post({"model": "other", "keep_alive": 0}, CHAT)

    @pytest.mark.parametrize(
        ("value", "seconds"),
        [
            (None, None), (0, 0), ("0", 0), (30, 30), ("30", 30), ("5m", 300), (-1, FOREVER),
            ("1h30m", 5400), ("-1", FOREVER), ("-1m", FOREVER), ("1500ms", 1.5), (1.5, 1.5),
        ],
    )  # fmt: skip
    def test_times_as_clients_write_them(
        self, value: float | str | None, seconds: float | None
    ) -> None:
        assert keep_alive_seconds(value) == seconds

    @pytest.mark.parametrize(
        "value", ["", "5", "5 m", "m", "1h-3m", "x5m", "nan", "inf"]
    )
    def test_what_is_no_time_is_refused(self, value: str) -> None:
        if value == "5":
            assert keep_alive_seconds(value) == 5
            return
        with pytest.raises(Problem, match="keep_alive"):
            keep_alive_seconds(value)


def names(api: Running, path: str) -> set[str]:
    return {row["name"] for row in api.client.get(path).json()["models"]}


def row_time(api: Running) -> str:
    """The server's own time."""
    return str(api.post({"model": "tiny"}, CHAT).json()["created_at"])


class TestModels:
    def test_the_list_has_each_model_once_with_a_tag(self, api: Running) -> None:
        (row,) = api.client.get("/api/tags").json()["models"]
        assert row["name"] == row["model"] == "tiny:latest"
        assert row["size"] > 0 and len(row["digest"]) == 64
        assert row["details"]["family"] == "llama"
        assert row["details"]["format"] == "safetensors"
        assert api.client.head("/api/tags").status_code == 200

    def test_a_model_is_shown_with_what_editors_ask_for(self, api: Running) -> None:
        for body in ({"model": "tiny"}, {"name": "tiny:latest", "verbose": True}):
            shown = api.post(body, "/api/show").json()
            information = shown["model_info"]
            assert information["general.architecture"] == "llama"
            assert information["llama.context_length"] > 0
            assert information["llama.embedding_length"] == 64
            assert information["llama.block_count"] == 3
            assert information["general.parameter_count"] > 0
            assert shown["capabilities"] == ["completion", "tools", "thinking"]
            assert "<|im_start|>" in shown["template"]
        assert "model" in refusal(api, "/api/show", {})

    def test_the_version_is_new_enough_for_who_asks(self, api: Running) -> None:
        version = api.client.get("/api/version").json()["version"]
        assert tuple(map(int, version.split("."))) >= (0, 13, 4)

    def test_an_unknown_model_is_not_found(self, api: Running) -> None:
        for path in (CHAT, GENERATE, "/api/show"):
            body = {"model": "nobody", "prompt": "x"}
            if path == CHAT:
                body = {"model": "nobody"}
            if path == "/api/show":
                body = {"model": "nobody"}
            assert "not found" in refusal(api, path, body, 404)
        assert "not found" in refusal(api, "/api/pull", {"model": "nobody"}, 404)

    def test_what_is_in_use_or_not_in_the_store_is_not_deleted(
        self, api: Running
    ) -> None:
        text = refusal(api, "/api/delete", {"model": "tiny"}, 409, "DELETE")
        assert "default model" in text
        text = refusal(api, "/api/delete", {"model": "other"}, 400, "DELETE")
        assert "not in the store" in text
        text = refusal(api, "/api/delete", {"model": "nobody"}, 404, "DELETE")
        assert "not found" in text

    @pytest.mark.parametrize("name", ["copy", "create", "push"])
    def test_what_is_not_offered_is_refused_by_name(
        self, api: Running, name: str
    ) -> None:
        text = refusal(api, f"/api/{name}", {"model": "tiny"})
        assert "not supported" in text

    def test_a_chat_model_makes_no_vectors(self, api: Running) -> None:
        body = {"model": "tiny", "input": ["x"]}
        assert "embedding model" in refusal(api, "/api/embed", body)
        body = {"model": "tiny", "prompt": "x"}
        assert "embedding model" in refusal(api, "/api/embeddings", body)

    def test_no_blobs_are_kept(self, api: Running) -> None:
        assert api.client.head("/api/blobs/sha256:0").status_code == 404


class TestPort:
    def test_a_port_that_is_taken_is_refused_with_what_to_do(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            settings = ServerSettings(port=0, ollama_port=port)
            with pytest.raises(ConfigError, match="is Ollama running"), bound(settings):
                pass

    def test_ollamas_port_says_what_it_says(self, tiny: Path) -> None:
        (free,) = spare_ports(1)
        address = f"http://127.0.0.1:{free}/"
        with served({"tiny": tiny}, ServerSettings(port=0, ollama_port=free)):
            assert httpx.get(address, timeout=240).text == "Ollama is running"
            assert httpx.head(address, timeout=240).status_code == 200

    def test_both_ports_are_bound(self) -> None:
        (free,) = spare_ports(1)
        with bound(ServerSettings(port=0, ollama_port=free)) as sockets:
            assert [item.getsockname()[1] == free for item in sockets] == [False, True]

    @pytest.mark.parametrize(
        ("flags", "port"),
        [([], None), (["--ollama-port"], 11434), (["--ollama-port", "11500"], 11500)],
    )
    def test_the_flag_has_ollamas_own_port(
        self, flags: list[str], port: int | None
    ) -> None:
        arguments = build_parser().parse_args(["serve", "tiny", *flags])
        assert settings_from(arguments, {}).ollama_port == port

    def test_a_port_that_is_none_is_refused(self) -> None:
        arguments = build_parser().parse_args(["serve", "--ollama-port", "70000"])
        with pytest.raises(ConfigError, match="--ollama-port"):
            settings_from(arguments, {})


class TestPull:
    """Fetching, with a process that pretends to fetch."""

    def pull(self, tmp_path: Path, code: str) -> list[dict[str, Any]]:
        """The lines of a pull whose process runs `code` instead."""
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\n{code}\n")
        program.chmod(0o755)

        async def collect() -> list[dict[str, Any]]:
            async def find_models() -> None:
                pass

            registry: Any = SimpleNamespace(find_models=find_models, listed=list)
            pull = Pull("smollm2-135m", tmp_path, registry, program=str(program))
            try:
                return [json.loads(line) async for line in pull.lines() if line]
            except Problem as problem:
                return [json.loads(pull.problem(problem))]

        return asyncio.run(collect())

    def test_progress_is_told_in_bytes_and_ends_with_success(
        self, tmp_path: Path
    ) -> None:
        said = "rvllm: owner/name: 5 of 20 MB (25 %)"
        rows = self.pull(tmp_path, f"echo '{said}' >&2; echo 'rvllm: fetched 7 MB' >&2")
        assert [row["status"] for row in rows] == [
            "pulling manifest", "pulling smollm2-135m", "pulling smollm2-135m",
            "verifying sha256 digest", "writing manifest", "success",
        ]  # fmt: skip
        assert (rows[1]["completed"], rows[1]["total"]) == (5_000_000, 20_000_000)
        assert rows[2]["completed"] == 7_000_000 < rows[2]["total"]

    def test_a_failure_says_why(self, tmp_path: Path) -> None:
        code = "echo 'rvllm: error: the disk is full' >&2; exit 1"
        assert self.pull(tmp_path, code) == [
            {"error": "smollm2-135m was not fetched: the disk is full"}
        ]
