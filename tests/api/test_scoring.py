"""Prompts are scored over HTTP as evaluation harnesses ask for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from rvllm_local.models.loader import load_model
from rvllm_local.models.locate import locate
from tests.support.api import Running

PROMPT = [70, 71, 259, 90, 75, 84, 66, 70, 101, 44]


@pytest.fixture(scope="module")
def expected(tiny: Path) -> np.ndarray:
    """[tokens - 1, vocab] log-probabilities of a forward without caches."""
    logits = load_model(locate(str(tiny))).module(mx.array([PROMPT]))[0]
    logits = logits.astype(mx.float32)
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))[:-1]


def complete(api: Running, **fields: Any) -> Any:
    body = {"model": "default", "prompt": PROMPT, "temperature": 0, **fields}
    answer = api.post(body, "/v1/completions")
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"]


def test_loglikelihoods_are_those_of_a_plain_forward(
    api: Running, expected: np.ndarray
) -> None:
    """Twice, since the second time the prompt's prefix is cached."""
    for _ in range(2):
        choice = complete(api, echo=True, logprobs=1, max_tokens=1)[0]
        found = choice["logprobs"]
        assert len(found["tokens"]) == len(PROMPT) + 1
        assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
        for position, token in enumerate(PROMPT[1:], 1):
            logprob = found["token_logprobs"][position]
            assert logprob == pytest.approx(expected[position - 1, token], abs=1e-3)
            best = max(found["top_logprobs"][position].values())
            assert best == pytest.approx(expected[position - 1].max(), abs=1e-3)


def test_a_prompt_is_scored_without_an_answer(
    api: Running, expected: np.ndarray
) -> None:
    choice = complete(api, echo=True, logprobs=0, max_tokens=0)[0]
    assert choice["finish_reason"] == "length"
    assert len(choice["logprobs"]["tokens"]) == len(PROMPT)
    total = sum(choice["logprobs"]["token_logprobs"][1:])
    tokens = np.array(PROMPT[1:])
    plain = expected[np.arange(len(tokens)), tokens].sum()
    assert total == pytest.approx(plain, abs=1e-2)


def test_prompt_logprobs_are_by_token_id(api: Running, expected: np.ndarray) -> None:
    choice = complete(api, prompt_logprobs=2, max_tokens=1)[0]
    rows = choice["prompt_logprobs"]
    assert rows[0] is None and choice["logprobs"] is None
    for position, token in enumerate(PROMPT[1:], 1):
        row = rows[position][str(token)]
        assert row["logprob"] == pytest.approx(expected[position - 1, token], abs=1e-3)
        assert len(rows[position]) in (2, 3)


def test_a_special_token_is_found_as_harnesses_look_for_it(api: Running) -> None:
    """They tokenize the text of /tokenizer_info, and take the first token."""
    ends = api.client.get("/tokenizer_info").json()
    body = {"prompt": ends["eos_token"], "add_special_tokens": False}
    tokens = api.post(body, "/tokenize").json()["tokens"]
    assert tokens == [api.engine.limits.eos_token_ids[0]]


def test_many_prompts_are_scored_in_one_request(api: Running) -> None:
    fields = {"echo": True, "logprobs": 1, "max_tokens": 0}
    alone = [complete(api, prompt=PROMPT[:length], **fields)[0] for length in (4, 7)]
    both = complete(api, prompt=[PROMPT[:4], PROMPT[:7]], **fields)
    for one, other in zip(alone, both, strict=True):
        assert other["text"] == one["text"]
        assert other["logprobs"]["token_logprobs"][1:] == pytest.approx(
            one["logprobs"]["token_logprobs"][1:], abs=1e-3
        )


def test_a_stream_says_what_the_whole_says(api: Running) -> None:
    fields = {"echo": True, "logprobs": 1, "max_tokens": 3}
    whole = complete(api, **fields)[0]
    body = {"model": "default", "prompt": PROMPT, "temperature": 0, "stream": True}
    answer = api.post({**body, **fields}, "/v1/completions")
    tokens, text = [], ""
    for line in answer.text.splitlines():
        if not line.startswith("data: {"):
            continue
        choice = json.loads(line.removeprefix("data: "))["choices"][0]
        text += choice["text"]
        tokens += (choice["logprobs"] or {"tokens": []})["tokens"]
    assert text == whole["text"]
    assert tokens == whole["logprobs"]["tokens"]


def test_offsets_are_places_in_the_text(api: Running) -> None:
    """Of whole characters; a part of one stands where the character begins."""
    choice = complete(api, prompt="the séa", echo=True, logprobs=1, max_tokens=0)[0]
    found = choice["logprobs"]
    pairs = list(zip(found["tokens"], found["text_offset"], strict=True))
    for token, offset in pairs:
        if not token.startswith("bytes:"):
            assert choice["text"][offset:].startswith(token)
    parts = [pair for pair in pairs if pair[0].startswith("bytes:")]
    assert [token for token, _ in parts] == ["bytes:\\xc3", "bytes:\\xa9"]


def test_no_token_without_scores_is_no_fault(api: Running) -> None:
    assert complete(api, max_tokens=0)[0]["text"] == ""
    text = complete(api, prompt="the sea", echo=True, max_tokens=0)[0]["text"]
    assert text == "the sea"


def test_the_tokenizer_is_described(api: Running) -> None:
    info = api.client.get("/tokenizer_info").json()
    assert info["eos_token"] == "<|endoftext|>"
    assert info["bos_token"] == "<|im_start|>"
    assert "im_start" in info["chat_template"]


def test_too_many_alternatives_are_refused(api: Running) -> None:
    body = {"prompt": PROMPT, "prompt_logprobs": 21, "max_tokens": 1}
    answer = api.post(body, "/v1/completions")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "prompt_logprobs"
