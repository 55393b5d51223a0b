"""Bodies made of the server's own OpenAPI document, right and wrong ones: no answer is a 500."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

from tests.support.api import Running

ROUNDS = int(os.environ.get("RVLLM_TEST_ROUNDS", "100"))  # bodies for each path
ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    2**70,
    1.5,
    "",
    "x" * 300,
    "\u2028",
    "\x00",
    "é😀",
    [],
    {},
    [[]],
    {"": None},
    "default",
]


class Fuzz:
    """Values for a JSON schema; one in ten is something else."""

    def __init__(self, document: dict[str, Any], seed: str) -> None:
        self._schemas = document["components"]["schemas"]
        self._chance = random.Random(seed)

    def value(self, schema: dict[str, Any], depth: int = 0) -> Any:
        chance = self._chance
        if chance.random() < 0.1 or depth > 6:
            return chance.choice(ODD)
        if "$ref" in schema:
            return self.value(self._schemas[schema["$ref"].rpartition("/")[2]], depth)
        if "anyOf" in schema:
            return self.value(chance.choice(schema["anyOf"]), depth)
        if "enum" in schema:
            return chance.choice(schema["enum"])
        kind = schema.get("type")
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return [
                self.value(schema.get("items", {}), depth + 1)
                for _ in range(chance.randint(0, 3))
            ]
        if kind == "string":
            return chance.choice(
                [
                    "",
                    "a",
                    "default",
                    "tiny",
                    "user",
                    "text",
                    "function",
                    "message",
                    "hello there",
                    "{}",
                ]
            )
        if kind == "integer":
            return chance.choice([0, 1, 2, 3, 5, -1, 100])
        if kind == "number":
            return chance.choice([0, 0.5, 1, -1, 2.5])
        return chance.choice([True, False]) if kind == "boolean" else chance.choice(ODD)

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        chance = self._chance
        found = {}
        for name, inner in schema.get("properties", {}).items():
            is_needed = name in schema.get("required", ())
            if chance.random() < (0.95 if is_needed else 0.12):
                found[name] = self.value(inner, depth + 1)
        if not schema.get("properties"):
            found[chance.choice(["type", "a", "properties"])] = self.value(
                {}, depth + 1
            )
        return found


def test_no_body_makes_the_server_fail(api: Running) -> None:
    document = api.client.get("/openapi.json").json()
    statuses: dict[str, set[int]] = {}
    for path, operations in document["paths"].items():
        if "post" not in operations:
            continue
        schema = operations["post"]["requestBody"]["content"]["application/json"][
            "schema"
        ]
        fuzz = Fuzz(document, path)
        for number in range(ROUNDS):
            body = fuzz.value(schema)
            if isinstance(body, dict):
                body["model"] = "default"
                if path in ("/api/chat", "/api/generate"):
                    body["options"] = {"num_predict": 2}
                body |= {
                    name: 2
                    for name in ("max_tokens", "max_output_tokens")
                    if name in body or number % 2
                }
                if path in ("/tokenize", "/detokenize", "/v1/messages/count_tokens"):
                    body.pop("max_tokens", None), body.pop("max_output_tokens", None)
                body.pop(
                    "max_output_tokens" if path != "/v1/responses" else "max_tokens",
                    None,
                )
            answer = api.client.post(path, json=body)
            assert answer.status_code < 500, (path, body, answer.text)
            assert "internal_error" not in answer.text, (path, body)
            statuses.setdefault(path, set()).add(answer.status_code)
    # A path that names a response finds none by the name of its own template.
    refusals = {path: 404 if "{" in path else 400 for path in statuses}
    silent = [path for path, codes in statuses.items() if refusals[path] not in codes]
    assert not silent, f"no body was refused at {silent}: {statuses}"
    assert (
        200
        in statuses["/v1/chat/completions"]
        | statuses["/v1/completions"]
        | statuses["/v1/responses"]
    )


@pytest.mark.parametrize(
    "name", ["x" * 300, "%00", "..%2f..%2fetc", "é", "a b", "'--", "%ff"]
)
def test_no_name_makes_the_server_fail(api: Running, name: str) -> None:
    for path in ("/v1/models/", "/v1/engine/explain/", "/v1/responses/"):
        for method in ("GET", "DELETE"):
            assert api.client.request(method, path + name).status_code in (404, 405)


def test_the_document_names_every_route(api: Running) -> None:
    document = api.client.get("/openapi.json").json()
    assert set(document["paths"]) == {
        route.path_format for route in api.server.routes
    } - {"/openapi.json"}
