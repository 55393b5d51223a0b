"""Embeddings and ranks over HTTP: OpenAI's, Cohere's, Jina's and Ollama's shapes, and refusals."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rvllm_local.errors import ContextOverflowError, ParameterError
from rvllm_local.llm import LLM
from rvllm_local.server.api.openai.schema import TextRequest
from rvllm_local.server.api.vectors.schema import EmbeddingsRequest
from rvllm_local.server.http import json_body
from rvllm_local.server.http.problems import Problem
from tests.support.api import Running, served
from tests.support.pooled import TEXTS, save_embedder, save_reranker
from tests.support.tiny import save_tiny

EMBED, RERANK = "/v1/embeddings", "/v1/rerank"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "chat": save_tiny("llama", folder / "chat"),
        "embedder": save_embedder(folder / "embedder"),
        "reranker": save_reranker(folder / "reranker"),
    }


@pytest.fixture(scope="module")
def api(folders: dict[str, Path]) -> Iterator[Running]:
    with served(folders) as running:
        yield running


def embed(api: Running, **fields: Any) -> dict[str, Any]:
    answer = api.post({"model": "embedder", **fields}, EMBED)
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


def vectors(content: dict[str, Any]) -> np.ndarray:
    return np.array([row["embedding"] for row in content["data"]])


def test_texts_come_back_as_vectors_in_their_order(api: Running) -> None:
    content = embed(api, input=list(TEXTS))
    assert content["object"] == "list" and content["model"] == "embedder"
    assert [row["index"] for row in content["data"]] == [0, 1, 2, 3]
    # Two tokens more for each text: its beginning and its end.
    assert content["usage"] == {"prompt_tokens": 22, "total_tokens": 22}
    alone = vectors(embed(api, input=TEXTS[2]))
    np.testing.assert_allclose(alone[0], vectors(content)[2], atol=1e-5)


def test_base64_holds_the_same_numbers(api: Running) -> None:
    plain = vectors(embed(api, input="w1 w2", dimensions=8))
    coded = embed(api, input="w1 w2", dimensions=8, encoding_format="base64")
    data = base64.b64decode(coded["data"][0]["embedding"])
    np.testing.assert_allclose(np.frombuffer(data, "<f4"), plain[0], atol=1e-6)


def test_ollamas_vectors_have_length_one_and_its_former_routes_as_made(
    api: Running,
) -> None:
    made = vectors(embed(api, input=["w1 w2", "w3"]))
    body = {"model": "embedder", "input": ["w1 w2", "w3"]}
    unit = np.array(api.post(body, "/api/embed").json()["embeddings"])
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1.0, atol=1e-5)
    lengths = np.linalg.norm(made, axis=1, keepdims=True)
    np.testing.assert_allclose(unit * lengths, made, atol=1e-4)
    body = {"model": "embedder", "prompt": "w1 w2"}
    former = np.array(api.post(body, "/api/embeddings").json()["embedding"])
    np.testing.assert_allclose(former, made[0], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "capabilities"), [("embedder", ["embedding"]), ("reranker", ["rerank"])]
)
def test_what_reads_alone_is_offered_to_nobody_for_chats(
    api: Running, name: str, capabilities: list[str]
) -> None:
    shown = api.post({"model": name}, "/api/show").json()
    assert shown["capabilities"] == capabilities
    assert shown["model_info"]["bert.embedding_length"] == 32


def test_thousands_of_texts_keep_their_places(api: Running) -> None:
    """They are read in groups, by their lengths."""
    texts = [" ".join(["w7"] * (1 + number % 40)) for number in range(1500)]
    several = vectors(embed(api, input=texts))
    for number in (0, 39, 40, 777, 1499):
        alone = vectors(embed(api, input=texts[number]))[0]
        np.testing.assert_allclose(several[number], alone, atol=1e-5)


def test_token_ids_are_taken_as_they_are(api: Running) -> None:
    ids = [2, 5, 6, 7, 3]  # [CLS] w1 w2 w3 [SEP]
    text = vectors(embed(api, input="w1 w2 w3"))
    for given in (ids, [ids]):
        np.testing.assert_allclose(vectors(embed(api, input=given)), text, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"input": []}, "0 entries"),
        ({"input": "w1", "dimensions": 33}, "from 1 to"),
        ({"input": "w1", "encoding_format": "int8"}, "encoding_format"),
        ({"input": [[999]]}, "token id 999"),
        ({"input": [[]]}, "at least one token"),
        ({"input": " ".join(["w1"] * 80)}, "82 tokens"),
        ({"input": "w1", "input_type": "poem"}, "poem"),
        ({"input": ["w1", 5]}, "mixes texts and token ids"),
        ({"input": [[5]], "input_type": "query"}, "no token ids"),
        ({"input": "w1", "model": "chat"}, "embedding model"),
        ({"input": "w1", "model": "reranker"}, "scores pairs"),
    ],
)
def test_what_cannot_be_embedded_is_refused_by_name(
    api: Running, fields: dict[str, Any], said: str
) -> None:
    answer = api.post({"model": "embedder", **fields}, EMBED)
    assert answer.status_code == 400, answer.text
    assert said in answer.json()["error"]["message"]


def test_a_model_that_reads_alone_writes_no_chat(api: Running) -> None:
    messages = [{"role": "user", "content": "w1"}]
    answer = api.post({"model": "embedder", "messages": messages})
    assert answer.status_code == 400
    answer = api.post({"model": "embedder", "prompt": "w1"}, "/v1/completions")
    assert answer.status_code == 400
    assert "ask a chat model" in answer.json()["error"]["message"]


def rerank(api: Running, path: str = RERANK, **fields: Any) -> dict[str, Any]:
    body = {"model": "reranker", "query": "w1 w2", "documents": list(TEXTS), **fields}
    answer = api.post(body, path)
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_documents_come_back_best_first(api: Running, path: str) -> None:
    ranked = rerank(api, path)["results"]
    scores = [row["relevance_score"] for row in ranked]
    assert sorted(row["index"] for row in ranked) == [0, 1, 2, 3]
    assert scores == sorted(scores, reverse=True)
    assert rerank(api, path, top_n=2)["results"] == ranked[:2]
    told = rerank(api, path, return_documents=True, documents=[{"text": TEXTS[0]}])
    assert told["results"][0]["document"] == {"text": TEXTS[0]}


def test_a_document_that_is_too_long_is_cut(api: Running) -> None:
    rerank(api, documents=[" ".join(["w1"] * 500)])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"documents": []}, "documents has 0 entries"),
        ({"documents": ["w1"] * 20_000}, "documents has 20000 entries"),
        ({"top_n": 0}, "top_n is 0"),
        ({"max_tokens_per_doc": 0}, "max_tokens_per_doc is 0"),
        ({"model": "embedder"}, "makes vectors"),
    ],
)
def test_what_cannot_be_ranked_is_refused_by_name(
    api: Running, fields: dict[str, Any], said: str
) -> None:
    body = {"model": "reranker", "query": "w1", "documents": ["w2"], **fields}
    answer = api.post(body, RERANK)
    assert answer.status_code == 400, answer.text
    assert said in answer.json()["error"]["message"]


def test_ollamas_two_ways_to_ask(api: Running) -> None:
    expected = vectors(embed(api, input="w1 w2 w3"))[0]
    body = {"model": "embedder:latest", "input": ["w1 w2 w3", " ".join(["w1"] * 80)]}
    answer = api.post(body, "/api/embed")
    assert answer.status_code == 200, answer.text
    content = answer.json()
    unit = expected / np.linalg.norm(expected)
    np.testing.assert_allclose(content["embeddings"][0], unit, atol=1e-5)
    assert content["prompt_eval_count"] == 5 + 64, "cut, as Ollama does"
    assert content["total_duration"] > 0
    whole = api.post({**body, "truncate": False}, "/api/embed")
    assert whole.status_code == 400 and "82 tokens" in whole.json()["error"]
    former = api.post({"model": "embedder", "prompt": "w1 w2 w3"}, "/api/embeddings")
    np.testing.assert_allclose(former.json()["embedding"], expected, atol=1e-5)


def test_openais_client_reads_the_vectors(api: Running) -> None:
    from openai import OpenAI

    with OpenAI(base_url=f"http://127.0.0.1:{api.port}/v1", api_key="x") as client:
        # It asks for base64 by itself.
        answer = client.embeddings.create(model="embedder", input=list(TEXTS))
    expected = vectors(embed(api, input=list(TEXTS)))
    got = np.array([row.embedding for row in answer.data])
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_python_connects_to_the_server(api: Running, folders: dict[str, Path]) -> None:
    address = f"http://127.0.0.1:{api.port}"
    with LLM.connect(str(folders["embedder"]), address) as llm:
        given = llm.embed(TEXTS)
        np.testing.assert_allclose(
            given, vectors(embed(api, input=list(TEXTS))), atol=1e-5
        )
        with pytest.raises(ParameterError, match="makes vectors"):
            llm.rerank("w1", ["w2"])
        with pytest.raises(ContextOverflowError, match="82 tokens"):
            llm.embed(" ".join(["w1"] * 80))
    with LLM.connect(str(folders["reranker"]), address) as llm:
        ranked = llm.rerank("w1 w2", list(TEXTS))
    body = {"model": "reranker", "query": "w1 w2", "documents": list(TEXTS)}
    rows = api.post(body, RERANK).json()["results"]
    assert [index for index, _ in ranked] == [row["index"] for row in rows]
    scores = [row["relevance_score"] for row in rows]
    np.testing.assert_allclose([score for _, score in ranked], scores, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"inputs": []}, "0 entries"),
        ({"inputs": [{"token_ids": [5], "second_at": 2}]}, "from 0 to 1"),
        ({"inputs": [{"token_ids": [5]}], "request_id": "a b"}, "request_id must be"),
        ({"inputs": [{"token_ids": [5]}], "model": "chat"}, "embedding model"),
    ],
)
def test_the_engines_own_route_refuses(
    api: Running, fields: dict[str, Any], said: str
) -> None:
    body = {"model": "embedder", "request_id": "r", **fields}
    answer = api.post(body, "/v1/engine/read")
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


def test_many_token_ids_are_taken(api: Running) -> None:
    """More numbers than other routes take, and spread over lines."""
    rows = [[5] * 70] * 16_384
    text = json.dumps({"model": "embedder", "input": rows}, indent=0)
    kind = json_body.decode(text.encode(), EmbeddingsRequest)
    assert len(kind.input) == 16_384
    longer = json.dumps({"prompt": [5] * 1_001_000}).encode()
    with pytest.raises(Problem, match="at most 1000000 are taken"):
        json_body.decode(longer, TextRequest)
