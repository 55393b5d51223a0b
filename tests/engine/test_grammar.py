"""Grammars in the engine: what comes out follows them, beside free requests, and a bad one harms only itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from rvllm_local import LLM, SamplingParams
from rvllm_local.clients.contract import make_requests, open_stream
from rvllm_local.clients.process.client import ProcessClient
from rvllm_local.errors import GrammarError, ParameterError
from rvllm_local.options import EngineOptions
from rvllm_local.text.grammar.formats import (
    grammar_for_format,
)
from rvllm_local.types import FinishReason
from tests.support.tiny import save_tiny

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "person", "schema": SCHEMA, "strict": True},
}
MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    save_tiny("llama", path, seed=2)
    return path


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(str(folder), kv_memory="4MB", max_rows=8) as engine:
        yield engine


def params(seed: int, **more: object) -> SamplingParams:
    return SamplingParams(max_tokens=200, temperature=1.0, seed=seed, **more)  # type: ignore[arg-type]


def test_every_document_of_a_random_model_fits_the_schema(llm: LLM) -> None:
    for completion in llm.chat(MESSAGES, params(1, n=8), response_format=FORMAT):
        assert completion.finish_reason is FinishReason.STOP
        document = json.loads(completion.text)
        assert (
            set(document) == {"name", "age"}
            and 0 <= document["age"] <= 99
            and len(document["name"]) <= 8
        )


@pytest.mark.parametrize(
    ("response_format", "pattern"),
    [
        ({"type": "regex", "regex": "[ab]{3}-[0-9]{2}"}, "[ab]{3}-[0-9]{2}"),
        ({"type": "choice", "choices": ["yes", "no", "perhaps"]}, "yes|no|perhaps"),
        ({"type": "json_object"}, r"\{.*"),
        ({"type": "text"}, "(?s).*"),
    ],
)
def test_other_formats(
    llm: LLM, response_format: dict[str, object], pattern: str
) -> None:
    completion = llm.chat(MESSAGES, params(3), response_format=response_format)[0]
    assert re.fullmatch(pattern, completion.text, re.DOTALL)


def test_bound_and_free_requests_share_a_batch_and_do_not_touch_each_other(
    llm: LLM,
) -> None:
    free = params(5, ignore_eos=True)
    expected = llm.generate([5, 6, 7], free)[0].token_ids
    grammar = grammar_for_format(FORMAT)
    bound = [
        open_stream(llm._client, make_requests([9, 8], params(seed), grammar=grammar))
        for seed in range(4)
    ]
    beside = llm.generate([5, 6, 7], free)[0].token_ids
    for stream in bound:
        json.loads("".join(event.text for event in stream))
    assert beside == expected


def test_what_cannot_be_enforced_is_refused_by_name(llm: LLM) -> None:
    with pytest.raises(ParameterError, match="xml"):
        llm.chat(MESSAGES, params(1), response_format={"type": "xml"})
    with pytest.raises(ParameterError):
        llm.chat(MESSAGES, params(1), response_format={"type": "regex", "regex": "("})


def test_grammars_cross_to_the_engine_s_process(folder: Path) -> None:
    client = ProcessClient(str(folder), EngineOptions(kv_memory=4_000_000))
    try:
        requests = make_requests([5, 6], params(2), grammar=grammar_for_format(FORMAT))
        assert set(
            json.loads("".join(event.text for event in open_stream(client, requests)))
        ) == {"name", "age"}
        with pytest.raises(GrammarError, match="grammar"):
            list(
                open_stream(
                    client, make_requests([5], params(2), grammar="not a grammar")
                )
            )
        assert client.stats()["requests_running"] == 0
    finally:
        client.close()
