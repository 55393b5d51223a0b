"""Calls of the clients that speak Ollama's API; prints what each of them got.

Runs in an environment of its own, which holds the clients and nothing of the project.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import ollama

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
BASE, MODEL = sys.argv[1], "tiny"
WEATHER: dict[str, Any] = {
    "name": "weather",
    "description": "The weather in a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
TOOL = {"type": "function", "function": WEATHER}


def said(word: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"say:{word}"}]


def official() -> dict[str, Any]:
    """The maker's own client."""
    client = ollama.Client(host=BASE)
    results: dict[str, Any] = {}
    results["list"] = [row.model for row in client.list().models]
    shown = client.show(MODEL)
    results["show"] = [shown.capabilities, shown.modelinfo["general.architecture"]]
    parts = client.chat(MODEL, messages=said("hello"), stream=True)
    results["chat"] = "".join(part.message.content or "" for part in parts)
    thought = client.chat(MODEL, messages=said("thought"), think=True)
    results["thinking"] = thought.message.thinking
    called = client.chat(MODEL, messages=said("call"), tools=[TOOL])
    call = called.message.tool_calls[0].function
    results["call"] = [call.name, dict(call.arguments)]
    history = [
        *said("call"),
        called.message,
        {"role": "tool", "tool_name": call.name, "content": "sunny"},
        *said("hello"),
    ]
    results["result"] = client.chat(MODEL, messages=history).message.content
    schema = {"type": "object", "properties": {"salty": {"type": "boolean"}}}
    form = client.chat(MODEL, messages=said("json"), format=schema)
    results["format"] = json.loads(form.message.content)
    first = client.generate(MODEL, prompt="say:hello", options={"temperature": 0})
    second = client.generate(MODEL, prompt="say:json", context=first.context)
    results["generate"] = [first.response, second.response]
    results["ps"] = [row.model for row in client.ps().models]
    results["load"] = client.generate(MODEL, keep_alive="5m").done_reason
    for name, work in {
        "embed": lambda: client.embed(MODEL, input="x"),
        "unknown": lambda: client.chat("nobody", messages=said("hello")),
        "delete": lambda: client.delete(MODEL),
        "copy": lambda: client.copy(MODEL, "other"),
        "pull": lambda: client.pull("nobody"),
    }.items():
        try:
            work()
        except ollama.ResponseError as error:
            results[name] = error.status_code
    return results


def langchain() -> dict[str, Any]:
    from langchain_ollama import ChatOllama, OllamaLLM

    chat = ChatOllama(
        model=MODEL, base_url=BASE, temperature=0, validate_model_on_init=True
    )
    parts = chat.stream("say:hello")
    called = chat.bind_tools([TOOL]).invoke("say:call").tool_calls[0]
    llm = OllamaLLM(model=MODEL, base_url=BASE)
    thinking = ChatOllama(model=MODEL, base_url=BASE, reasoning=True)
    return {
        "stream": "".join(part.content for part in parts),
        "call": [called["name"], called["args"]],
        "llm": llm.invoke("say:hello"),
        "thinking": thinking.invoke("say:thought").additional_kwargs[
            "reasoning_content"
        ],
    }


def llama_index() -> dict[str, Any]:
    from llama_index.core.base.llms.types import ChatMessage
    from llama_index.llms.ollama import Ollama

    llm = Ollama(model=MODEL, base_url=BASE, request_timeout=120.0)
    parts = llm.stream_chat([ChatMessage(role="user", content="say:hello")])
    return {
        "chat": "".join(part.delta or "" for part in parts),
        "complete": llm.complete("say:hello").text,
    }


def litellm() -> dict[str, Any]:
    import litellm as library

    results: dict[str, Any] = {}
    for kind in ("ollama", "ollama_chat"):
        options = {"model": f"{kind}/{MODEL}", "api_base": BASE}
        answer = library.completion(messages=said("hello"), **options)
        results[kind] = answer.choices[0].message.content
        parts = library.completion(messages=said("hello"), stream=True, **options)
        text = [part.choices[0].delta.content or "" for part in parts]
        results[f"{kind} stream"] = "".join(text)
    called = library.completion(
        model=f"ollama_chat/{MODEL}",
        api_base=BASE,
        messages=said("call"),
        tools=[TOOL],
    )
    call = called.choices[0].message.tool_calls[0].function
    results["call"] = [call.name, json.loads(call.arguments)]
    return results


WORK = {
    "official": official,
    "langchain": langchain,
    "llama_index": llama_index,
    "litellm": litellm,
}
print(json.dumps({name: WORK[name]() for name in sys.argv[2:]}))
