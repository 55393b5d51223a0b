"""Every schema is refused with a reason, or every document that comes validates: the model is random, so that only the
grammar keeps it valid.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from jsonschema.validators import validator_for

from tests.text.schema_corpus import corpus

SAMPLE = int(
    os.environ.get("RVLLM_TEST_SCHEMAS", "64")
)  # the whole corpus takes some minutes
ENDINGS = ['"', "}", "]", ",", ":"]


def verdict(client: httpx.Client, schema: Any, bias: dict[str, float]) -> str:
    body = {
        "model": "thinker",
        "messages": [{"role": "user", "content": "x"}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "s", "schema": schema, "strict": True},
        },
        "max_tokens": 500,
        "seed": 7,
        "logit_bias": bias,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    answer = client.post("/v1/chat/completions", json=body)
    if answer.status_code == 400:
        assert answer.json()["error"]["message"], "a refusal says why"
        return "refused"
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    if choice["finish_reason"] == "length":
        return "cut"
    kind = validator_for(schema if isinstance(schema, dict) else {})
    kind(schema, format_checker=kind.FORMAT_CHECKER).validate(
        json.loads(choice["message"]["content"])
    )
    return "valid"


def test_a_schema_is_refused_or_its_documents_validate(address: str) -> None:
    schemas = random.Random(3).sample(sorted(corpus(), key=str), SAMPLE)
    with (
        httpx.Client(base_url=address, timeout=120) as client,
        ThreadPoolExecutor(6) as threads,
    ):
        tokens = [
            client.post("/tokenize", json={"model": "thinker", "prompt": end}).json()[
                "tokens"
            ]
            for end in ENDINGS
        ]
        bias = {str(one[0]): 4.0 for one in tokens}
        verdicts = Counter(
            threads.map(lambda schema: verdict(client, schema, bias), schemas)
        )
    print(verdicts)
    assert verdicts["cut"] <= SAMPLE / 10
    assert verdicts["valid"] >= SAMPLE / 2


def test_the_corpus_is_large() -> None:
    assert len(list(corpus())) >= 300
