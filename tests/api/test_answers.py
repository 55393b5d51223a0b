"""What answers hold beside their text: counts that add up, the prompt that was asked for, thoughts that were not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rvllm_local.options import EngineOptions
from rvllm_local.server.api.anthropic.answer import Blocks
from rvllm_local.text.tools import ContentDelta, ReasoningDelta
from tests.support.api import CHAT, Running, served

SAID = [
    {
        "role": "user",
        "content": "A prompt of more than one block of thirty-two tokens, which choices share.",
    }
]


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_counts_once_however_many_choices_it_has(
    api: Running, stream: bool
) -> None:
    def usage(n: int, seed: int) -> dict[str, int]:
        said = [{"role": "user", "content": f"{seed} {stream} {SAID}"}]
        body = {
            **CHAT,
            "messages": said,
            "n": n,
            "stream": stream,
            "seed": seed,
        }  # drawn freely, a choice may end early
        answer = api.post(
            {**body, "stream_options": {"include_usage": True}} if stream else body
        )
        text = answer.text.split("data: ")[-2] if stream else answer.text
        found: dict[str, int] = json.loads(text)["usage"]
        return found

    one, three = usage(1, 1), usage(3, 2)
    assert (
        three["prompt_tokens"] == one["prompt_tokens"]
        and three["completion_tokens"] == 12
    )
    assert three["prompt_tokens_details"] == {"cached_tokens": 0}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_timings_come_beside_the_counts_for_who_asks(api: Running, path: str) -> None:
    text = {"model": "default", "prompt": "x", "max_tokens": 4}
    body = (CHAT if "chat" in path else text) | {"stream": True, "ignore_eos": True}
    body["stream_options"] = {"include_usage": True}
    asks = {"X-Include-Timings": "true"}
    last = json.loads(api.post(body, path, headers=asks).text.split("data: ")[-2])
    timings, count = last["timings"], last["usage"]["completion_tokens"]
    assert (timings["predicted_n"], last["choices"]) == (count, [])
    assert timings["prompt_n"] + timings["cache_n"] == last["usage"]["prompt_tokens"]
    assert timings["prompt_ms"] > 0 and timings["predicted_ms"] > 0
    speed = (count - 1) / timings["predicted_ms"] * 1e3
    assert timings["predicted_per_second"] == pytest.approx(speed, rel=0.01)
    assert "timings" not in api.post(body, path).text
    del body["stream"], body["stream_options"]
    assert api.post(body, path, headers=asks).json()["timings"]["predicted_n"] == count


def test_an_echo_comes_though_nothing_follows_it(api: Running) -> None:
    body = {
        "model": "default",
        "prompt": "x",
        "max_tokens": 1,
        "echo": True,
        "guided_regex": "a?",
        "logit_bias": {"0": 100},
    }
    whole = api.post(body, "/v1/completions").json()["choices"][0]["text"]
    lines = api.post({**body, "stream": True}, "/v1/completions").text.split("data: ")[
        1:-1
    ]
    assert "".join(json.loads(line)["choices"][0]["text"] for line in lines) == whole
    assert whole.startswith("x")


def test_more_choices_than_may_ever_be_open_are_refused_for_good(tiny: Path) -> None:
    options = EngineOptions(
        kv_memory=6_000_000, max_rows=2, prefill_chunk=64, max_waiting=2
    )
    with served({"tiny": tiny}, options=options) as running:
        answer = running.post({**CHAT, "n": 5})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")
        assert running.post({**CHAT, "n": 4}).status_code == 200
        many = running.post(
            {"model": "default", "prompt": ["x"] * 3, "n": 2}, "/v1/completions"
        )
        assert (many.status_code, many.json()["error"]["param"]) == (400, "n")


def test_thoughts_are_left_out_if_that_is_asked() -> None:
    blocks = Blocks(omits_thinking=True)
    events = [
        *blocks.take(ReasoningDelta("Hm.")),
        *blocks.take(ContentDelta("Yes")),
        *blocks.close(),
    ]
    assert "Hm." not in json.dumps(events)
    assert [(block["type"], block[block["type"]]) for block in blocks.blocks] == [
        ("thinking", ""),
        ("text", "Yes"),
    ]


def test_a_kept_input_comes_in_pages_the_last_item_first(api: Running) -> None:
    said = [{"role": "user", "content": text} for text in "abc"]
    kept = api.post(
        {"model": "default", "input": said, "max_output_tokens": 1}, "/v1/responses"
    ).json()["id"]

    def page(query: str) -> tuple[list[str], bool, str]:
        found = api.client.get(f"/v1/responses/{kept}/input_items?{query}").json()
        return (
            [item["content"] for item in found["data"]],
            found["has_more"],
            found["last_id"],
        )

    first, has_more, last = page("limit=2")
    assert (first, has_more) == (["c", "b"], True)
    assert page(f"limit=2&after={last}")[:2] == (["a"], False)
    assert page("order=asc")[:2] == (["a", "b", "c"], False)
    for query in ("limit=0", "limit=x", "order=up", "after=none"):
        assert (
            api.client.get(f"/v1/responses/{kept}/input_items?{query}").status_code
            == 400
        )
    assert (
        api.client.get(f"/v1/responses/{kept}?stream=true").json()["error"]["param"]
        == "stream"
    )
