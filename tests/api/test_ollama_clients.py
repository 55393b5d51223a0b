"""Clients that nobody here wrote speak Ollama's API with this server.

The Python ones come from PyPI at pinned versions, into an environment of their own;
where the index is not reached these tests are skipped. Of apps that cannot run here,
the requests that they are known to begin with are sent.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rvllm_local.models.locate import ModelFiles
from rvllm_local.text.tokenizer_files import read_tokenizer
from tests.support.api import Running, served
from tests.support.pypi import environment
from tests.support.scripted import ScriptedClient

PACKAGES = (
    "ollama==0.6.3",
    "langchain-ollama==1.1.0",
    "llama-index-llms-ollama==0.11.0",
    "litellm==1.110.2",
)
SCRIPT = Path(__file__).parent / "python" / "ollama_clients.py"
HELLO = "Hello by the sea."
CALL = ["weather", {"city": "Lisbon"}]


@pytest.fixture(scope="module")
def api(tiny: Path) -> Iterator[Running]:
    tokenizer = read_tokenizer(ModelFiles("folder", tiny, "tiny"))

    def opener(files: Any, options: Any) -> ScriptedClient:
        return ScriptedClient(tokenizer)

    with served({"tiny": tiny}, opener=opener) as running:
        yield running


@pytest.fixture(scope="module")
def results(api: Running) -> dict[str, Any]:
    """What each of the clients got."""
    python = environment(*PACKAGES)
    command = [str(python), str(SCRIPT), f"http://127.0.0.1:{api.port}"]
    names = ["official", "langchain", "llama_index", "litellm"]
    done = subprocess.run(
        [*command, *names], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_the_makers_own_client(results: dict[str, Any]) -> None:
    assert results["official"] == {
        "list": ["tiny:latest"],
        "show": [["completion", "tools", "thinking"], "llama"],
        "chat": HELLO,
        "thinking": "Is it salty?",
        "call": CALL,
        "result": HELLO,
        "format": {"salty": True},
        "generate": [HELLO, '{"salty": true}'],
        "ps": ["tiny:latest"],
        "load": "load",
        "embed": 400,
        "unknown": 404,
        "delete": 409,
        "copy": 400,
        "pull": 404,
    }


def test_langchain(results: dict[str, Any]) -> None:
    assert results["langchain"] == {
        "stream": HELLO,
        "call": CALL,
        "llm": HELLO,
        "thinking": "Is it salty?",
    }


def test_llama_index(results: dict[str, Any]) -> None:
    assert results["llama_index"] == {"chat": HELLO, "complete": HELLO}


def test_litellm(results: dict[str, Any]) -> None:
    assert results["litellm"] == {
        "ollama": HELLO,
        "ollama stream": HELLO,
        "ollama_chat": HELLO,
        "ollama_chat stream": HELLO,
        "call": CALL,
    }


class TestProbes:
    """The requests that apps are known to begin with, from their public sources."""

    def test_open_webui(self, api: Running) -> None:
        """It lists models by `/api/tags`, looks at what is loaded, and streams a chat."""
        assert api.client.get("/api/version").json()["version"]
        (row,) = api.client.get("/api/tags").json()["models"]
        assert {"name", "model", "size", "digest", "details"} <= row.keys()
        assert "models" in api.client.get("/api/ps").json()
        body = {
            "model": row["model"],
            "messages": [{"role": "user", "content": "say:hello"}],
            "options": {"num_ctx": 4096, "repeat_penalty": 1.1, "temperature": 0.7},
            "think": False,
            "stream": True,
            "keep_alive": "5m",
        }
        answer = api.post(body, "/api/chat")
        assert json.loads(answer.text.splitlines()[-1])["done"] is True

    def test_vs_code(self, api: Running) -> None:
        """It wants a version, each model's context and abilities, and then `/v1`."""
        version = api.client.get("/api/version").json()["version"]
        assert tuple(map(int, version.split("."))) >= (0, 6, 4)
        (row,) = api.client.get("/api/tags").json()["models"]
        shown = api.post({"model": row["model"]}, "/api/show").json()
        information = shown["model_info"]
        architecture = information["general.architecture"]
        assert information[f"{architecture}.context_length"] > 0
        assert "tools" in shown["capabilities"]
        body = {
            "model": row["model"],
            "messages": [{"role": "user", "content": "say:hello"}],
        }
        answer = api.post(body, "/v1/chat/completions").json()
        assert answer["choices"][0]["message"]["content"] == HELLO

    def test_home_assistant(self, api: Running) -> None:
        """It lists models, then streams a chat with tools and a context of its own."""
        (row,) = api.client.get("/api/tags").json()["models"]
        function = {
            "name": "HassTurnOn",
            "description": "Turns on a device",
            "parameters": {
                "type": "object",
                "properties": {"name": {"type": "string"}},
                "required": [],
            },
        }
        body = {
            "model": row["model"],
            "messages": [
                {"role": "system", "content": "You control a house."},
                {"role": "user", "content": "say:hello"},
            ],
            "tools": [{"type": "function", "function": function}],
            "stream": True,
            "keep_alive": "-1s",
            "options": {"num_ctx": 8192},
            "think": False,
        }
        answer = api.post(body, "/api/chat")
        parts = [json.loads(line) for line in answer.text.splitlines()]
        assert "".join(part["message"]["content"] for part in parts) == HELLO

    def test_codex_and_cline(self, api: Running) -> None:
        """Both list models; Codex fetches one that is not there, Cline gives its context."""
        assert api.client.get("/api/tags").status_code == 200
        missing = api.post({"model": "nobody/", "stream": True}, "/api/pull")
        assert missing.status_code == 404 and "error" in missing.json()
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "say:hello"}],
            "stream": True,
            "options": {"num_ctx": 32768},
        }
        assert api.post(body, "/api/chat").status_code == 200


def test_a_model_that_is_here_is_pulled_at_once(api: Running) -> None:
    """Codex with `--oss` pulls a model that is not listed by the very name it was given."""
    answer = api.post({"model": "tiny", "stream": True}, "/api/pull")
    assert answer.status_code == 200
    assert json.loads(answer.text.splitlines()[-1]) == {"status": "success"}
