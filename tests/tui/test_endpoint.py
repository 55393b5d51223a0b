"""The way to a server: what comes is read right, and everything that goes wrong is one plain sentence."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from rvllm_local.errors import EndpointError
from rvllm_local.history.types import ToolCall
from rvllm_local.tui.endpoint import ChatEndpoint
from rvllm_local.tui.reply_parts import ReplyEnd, ReplyStart, ReplyText, ReplyUsage
from rvllm_local.tui.server_answers import read_parts
from tests.tui.fake_endpoint import FakeEndpoint

PROMPT = ({"role": "user", "content": "hi"},)


def ask(
    fake: FakeEndpoint, params: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    async def run() -> list[dict[str, Any]]:
        endpoint = ChatEndpoint(fake.url)
        try:
            return [part async for part in endpoint.chat("small", PROMPT, params or {})]
        finally:
            await endpoint.close()

    return asyncio.run(run())


def fetch(url: str, name: str) -> Any:
    async def run() -> Any:
        endpoint = ChatEndpoint(url)
        try:
            return await getattr(endpoint, name)()
        finally:
            await endpoint.close()

    return asyncio.run(run())


def test_a_reply_comes_in_parts() -> None:
    with FakeEndpoint({"hi": [{"reasoning_content": "hm"}, "Hel", "lo"]}) as fake:
        parts = ask(fake, {"temperature": 0.5, "seed": None})
    assert parts[:3] == [
        ReplyText(reasoning="hm"),
        ReplyText("Hel"),
        ReplyText("lo"),
    ]
    assert ReplyUsage(12, 3, 8) in parts
    assert parts[-1] == ReplyEnd("stop")
    assert fake.requests[0]["temperature"] == 0.5
    assert "seed" not in fake.requests[0]


def test_drafted_tokens_are_counted() -> None:
    details = {"accepted_prediction_tokens": 31, "rejected_prediction_tokens": 9}
    usage = {
        "prompt_tokens": 5,
        "completion_tokens": 40,
        "completion_tokens_details": details,
    }
    event = json.dumps({"choices": [], "usage": usage}).encode()
    assert read_parts(event) == [ReplyUsage(5, 40, None, 31, 9)]
    timings = {"predicted_n": 40, "predicted_per_second": 61.5}
    event = json.dumps({"choices": [], "usage": usage, "timings": timings}).encode()
    assert read_parts(event)[0].speed == 61.5
    for lie in ("fast", True, -1, 0, 1e9, float("nan"), None, [1]):
        timings["predicted_per_second"] = lie
        event = json.dumps({"choices": [], "usage": usage, "timings": timings}).encode()
        assert read_parts(event)[0].speed is None
    usage["completion_tokens_details"] = "none"
    event = json.dumps({"choices": [], "usage": usage}).encode()
    assert read_parts(event) == [ReplyUsage(5, 40, None)]


def test_tool_calls_are_read() -> None:
    calls = [
        {
            "tool_calls": [
                {"index": 0, "id": "1", "function": {"name": "clock", "arguments": ""}}
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
    ]
    with FakeEndpoint({"hi": calls}) as fake:
        parts = ask(fake)
    assert [part.tool_calls for part in parts[:2]] == [
        (ToolCall("clock", "", "1"),),
        (ToolCall("", "{}"),),
    ]


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        (["a", "cut"], "closed the connection in the middle"),
        (
            ["a", {"error": {"message": "engine\ncrashed"}}],
            "the server says: engine crashed",
        ),
        ([b"data: {not json}\n\n"], "cannot be read"),
        ([b"data: 3\n\n"], "no object"),
        ([("status", 400, {"error": {"message": "no such model"}})], "no such model"),
        ([("status", 401, {})], "RVLLM_API_KEY"),
        ([("status", 503, [])], "not ready"),
    ],
)
def test_what_goes_wrong_is_one_sentence(steps: list[Any], told: str) -> None:
    with (
        FakeEndpoint({"hi": steps}) as fake,
        pytest.raises(EndpointError, match=told) as caught,
    ):
        ask(fake)
    assert "\n" not in str(caught.value)


def test_parts_that_lie_are_left_out() -> None:
    lies = [
        {"choices": 3},
        {"choices": [{"delta": [], "finish_reason": 3}]},
        {"content": ["x"], "tool_calls": [3, {"function": 3}]},
        {"choices": [], "usage": {"prompt_tokens": "many", "completion_tokens": True}},
        b": comment\n\ndata:\n\n"[:11],
        "end",
    ]
    with FakeEndpoint({"hi": lies}) as fake:
        texts = [part.text for part in ask(fake) if isinstance(part, ReplyText)]
    assert texts == ["end"]


def test_separators_within_a_text_do_not_split_it() -> None:
    raw = 'data: {"choices": [{"delta": {"content": "a\u2028b\u0085c"}}]}\r\n\r\n'.encode()
    with FakeEndpoint({"hi": [raw]}) as fake:
        assert ask(fake)[0].text == "a\u2028b\u0085c"


def test_nobody_there() -> None:
    with pytest.raises(
        EndpointError, match=r"no server answers at http://127\.0\.0\.1:9"
    ):
        fetch("127.0.0.1:9", "models")


@pytest.mark.parametrize(
    "url", ["ftp://x", "http://", "http://x:0", "http://x:99999", "http://[::1"]
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(EndpointError, match="is no endpoint"):
        ChatEndpoint(url)


def test_models_health_and_engine() -> None:
    with FakeEndpoint() as fake:
        small, large = fetch(fake.url + "/v1/", "models")
        assert (small.id, small.context_length, large.context_length) == (
            "small",
            32768,
            131072,
        )
        assert fetch(fake.url, "health") == (True, "ok")
        view = fetch(fake.url, "engine")
        assert (
            view.blocks["spilled"],
            len(view.block_map),
            view.memory["weights"],
        ) == (3, 32, 4_400_000_000)
        fake.engine = {
            "blocks": 3,
            "block_map": 4,
            "requests": [3],
            "stats": [],
            "memory": None,
        }
        assert fetch(fake.url, "engine").block_map == ""
        fake.models = "none"  # type: ignore[assignment]
        with pytest.raises(EndpointError, match="OpenAI-style"):
            fetch(fake.url, "models")


@pytest.mark.parametrize(
    ("url", "environ", "sent"),
    [
        ("http://127.0.0.1:1", {"OPENAI_API_KEY": "cloud"}, None),
        ("http://127.0.0.1:1", {"RVLLM_API_KEY": "own"}, "Bearer own"),
        ("https://example.org", {"OPENAI_API_KEY": "cloud"}, "Bearer cloud"),
        (
            "https://example.org",
            {"OPENAI_API_KEY": "cloud", "RVLLM_API_KEY": "own"},
            "Bearer own",
        ),
    ],
)
def test_keys_go_where_they_belong(
    url: str, environ: dict[str, str], sent: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "RVLLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert ChatEndpoint(url)._client.headers.get("Authorization") == sent


def test_leaving_the_stream_cancels_the_request() -> None:
    async def run(fake: FakeEndpoint) -> None:
        endpoint = ChatEndpoint(fake.url)
        stream = endpoint.chat("small", PROMPT, {})
        assert await anext(stream) == ReplyText("one")
        await stream.aclose()
        await endpoint.close()

    with FakeEndpoint({"hi": ["one", "hold", "two"]}) as fake:
        asyncio.run(run(fake))
        assert fake.disconnected.wait(60)


def test_asking_after_the_end_is_told_and_no_bug() -> None:
    async def scenario(endpoint: ChatEndpoint) -> None:
        await endpoint.close()
        assert await endpoint.engine() is None
        with pytest.raises(EndpointError):
            await endpoint.health()

    asyncio.run(scenario(ChatEndpoint("http://127.0.0.1:9")))


@pytest.mark.parametrize("num_steps", range(0, 40, 4))
def test_closing_leaves_no_connection_of_a_call_under_way(num_steps: int) -> None:
    """The client's own closing misses a connection that is still being made."""

    async def scenario(fake: FakeEndpoint) -> None:
        endpoint = ChatEndpoint(fake.url)
        call = asyncio.create_task(endpoint.models())
        for _ in range(num_steps):
            await asyncio.sleep(0)
        await endpoint.close()
        (answer,) = await asyncio.gather(call, return_exceptions=True)
        assert isinstance(answer, EndpointError | tuple)
        with pytest.raises(EndpointError, match="is closed"):
            await endpoint.health()

    with FakeEndpoint() as fake:  # its end waits for every connection's
        asyncio.run(scenario(fake))


def test_a_reply_has_the_servers_name_first() -> None:
    named = {"id": "chatcmpl-7", "choices": [{"delta": {"content": "Hi"}}]}
    with FakeEndpoint({"hi": [named]}) as fake:
        parts = ask(fake)
    assert parts[:2] == [ReplyStart("chatcmpl-7"), ReplyText("Hi")]
