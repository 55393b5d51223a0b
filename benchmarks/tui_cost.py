"""What the chat costs: appending to a long transcript, focus and resize, a stream at 50 tokens a second, first paint,
and, with --endpoint, what streaming in the chat takes from the server's tokens/s against a bare client.

    python benchmarks/tui_cost.py [--endpoint URL]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from rvllm_local.history.types import ChatMessage
from rvllm_local.tui.app import ChatApp
from rvllm_local.tui.events import ChatChanged, PromptSubmitted, ReplyGrew
from rvllm_local.tui.gatherer import FLUSH_S
from rvllm_local.tui.options import ChatOptions
from rvllm_local.tui.state import ConnectionState, ModelInfo

REPLY = "Some **bold** words and `code` in a reply.\n\n- one\n- two\n\n```python\nx = [1, 2]\n```\n\nAnd an end.\n"


class Nobody:
    """A server that never answers, so that only the chat is measured."""

    is_child = False
    lease = None

    async def connect(self, _report: Any) -> Nobody:
        return self

    async def models(self) -> tuple[ModelInfo, ...]:
        return (ModelInfo("model", 32768),)

    async def engine(self, model: str | None = None) -> None:
        return None

    async def chat(self, *_: Any) -> Any:
        await asyncio.Event().wait()
        yield {}

    async def close(self) -> None: ...

    async def stop(self) -> None: ...


def messages(count: int) -> tuple[ChatMessage, ...]:
    return tuple(
        ChatMessage(f"m{at}", "c", None, ("user", "assistant")[at % 2], REPLY)
        for at in range(count)
    )


async def rest(app: ChatApp) -> float:
    """Seconds until the app has nothing left to do."""
    began = time.perf_counter()
    await asyncio.sleep(0)
    await app.wait_for_refresh()
    return time.perf_counter() - began


async def transcript_costs(count: int, is_all: bool) -> None:
    app = ChatApp(ChatOptions(), Nobody())
    async with app.run_test(size=(100, 40)) as pilot:
        await pilot.pause(0.5)
        rows = messages(count * 2)
        app.transcript.show_messages(rows, {})
        if is_all:
            app.transcript.show_earlier(0)
            app.transcript.release_anchor()
        await pilot.pause()
        print(
            f"{len(app.transcript._views)} of {len(rows)} messages are mounted, {len(list(app.walk_children()))} widgets"
        )
        appends = []
        for at in range(20):
            rows = (*rows, ChatMessage(f"n{at}", "c", None, "assistant", REPLY))
            began = time.perf_counter()
            app.transcript.show_messages(rows, {})
            appends.append(time.perf_counter() - began)
            await rest(app)
        focuses = []
        for at in range(10):
            began = time.perf_counter()
            (app.transcript if at % 2 == 0 else app.composer).focus()
            await rest(app)
            focuses.append(time.perf_counter() - began)
        began = time.perf_counter()
        await pilot.resize_terminal(80, 30)
        await rest(app)
        print(
            f"append   median {statistics.median(appends) * 1e3:6.1f} ms   worst {max(appends) * 1e3:.1f} ms   (limit 5 ms)"
        )
        print(
            f"focus    median {statistics.median(focuses) * 1e3:6.1f} ms   worst {max(focuses) * 1e3:.1f} ms   (limit 150 ms)"
        )
        print(f"resize   {(time.perf_counter() - began) * 1e3:6.1f} ms")
        await app.shut()


async def stream_cost(seconds: float, rate: float) -> None:
    app = ChatApp(ChatOptions(), Nobody())
    async with app.run_test(size=(100, 40)) as pilot:
        await pilot.pause(0.5)
        app.transcript.show_messages(messages(400), {})
        app.driver.dispatch(PromptSubmitted("go", "p", "r", 0.0))
        await pilot.pause(0.5)
        words = (REPLY * 100).split(" ")
        began, used, sent = time.perf_counter(), time.process_time(), 0
        while (now := time.perf_counter() - began) < seconds:
            due = int(now * rate)
            if due > sent:  # the driver joins words to FLUSH_S
                text = " ".join(words[at % len(words)] for at in range(sent, due)) + " "
                app.driver.dispatch(ReplyGrew("r", now, text, num_chunks=due - sent))
                sent = due
            await asyncio.sleep(FLUSH_S)
        share = (time.process_time() - used) / (time.perf_counter() - began)
        print(
            f"stream   {rate:.0f} tokens/s for {seconds:.0f} s take {share:6.1%} of one core   (limit 30 %)"
        )
        await app.shut()


def first_paint() -> None:
    code = (
        "import time, asyncio\n"
        "from rvllm_local.tui.app import ChatApp; from rvllm_local.tui.options import ChatOptions\n"
        "from benchmarks.tui_cost import Nobody\n"
        "began = time.perf_counter()\n"
        "app = ChatApp(ChatOptions(), Nobody())\n"
        "app._begin = lambda: (print(time.perf_counter() - began), app.exit())\n"
        "app.run(headless=True)\n"
    )
    times = [
        float(
            subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            ).stdout.split()[0]
        )
        for _ in range(5)
    ]
    print(
        f"paint    median {statistics.median(times) * 1e3:6.1f} ms after imports   (limit 400 ms)"
    )


async def bare(url: str, prompt: str, tokens: int) -> float:
    """Tokens a second of a client that only counts."""
    from rvllm_local.tui.endpoint import ChatEndpoint
    from rvllm_local.tui.reply_parts import ReplyUsage

    endpoint = ChatEndpoint(url)
    model = (await endpoint.models())[0].id
    first = last = 0.0
    output = 0
    async for part in endpoint.chat(
        model,
        [{"role": "user", "content": prompt}],
        {"max_tokens": tokens, "temperature": 0, "ignore_eos": True},
    ):
        last = time.perf_counter()
        first = first or last
        if isinstance(part, ReplyUsage):
            output = part.output
    await endpoint.close()
    return (output - 1) / (last - first)


async def in_chat(url: str, prompt: str, tokens: int) -> float:
    """Tokens a second of the same request in the chat."""
    from rvllm_local.tui.launcher import ServerLauncher

    app = ChatApp(ChatOptions(), ServerLauncher(url, None))
    async with app.run_test(size=(100, 40)) as pilot:
        while app.driver.session.connection is not ConnectionState.READY:
            await pilot.pause(0.05)
        app.driver.dispatch(
            ChatChanged(
                {"params": {"max_tokens": tokens, "temperature": 0, "ignore_eos": True}}
            )
        )
        app.driver.submit(prompt)
        while app.driver.session.live is not None:
            await asyncio.sleep(0.05)
        speed = app.driver.session.stats.tokens_per_second or 0.0
        await app.shut()
    return speed


async def engine_loss(url: str, tokens: int, rounds: int) -> None:
    pairs = []
    for number in range(rounds):
        prompt = f"Tell a long story about whale number {number}."
        if (
            number % 2
        ):  # whoever is second in a round finds the prompt in the prefix cache
            shown = await in_chat(url, prompt, tokens)
            pairs.append((await bare(url, prompt, tokens), shown))
        else:
            pairs.append(
                (await bare(url, prompt, tokens), await in_chat(url, prompt, tokens))
            )
        print(
            f"round {number + 1}: bare {pairs[-1][0]:.2f}, in the chat {pairs[-1][1]:.2f} tokens/s",
            flush=True,
        )
    alone, shown = (statistics.median(pair[at] for pair in pairs) for at in (0, 1))
    print(
        f"server   {alone:.1f} tokens/s to a bare client, {shown:.1f} while the chat shows them: {1 - shown / alone:+.1%}   (limit 3 %)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint")
    parser.add_argument("--replies", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.endpoint:
        asyncio.run(engine_loss(arguments.endpoint, arguments.tokens, arguments.rounds))
        return
    first_paint()
    print("as the chat shows it:")
    asyncio.run(transcript_costs(arguments.replies, False))
    print("scrolled up to the first message, so that all are mounted:")
    asyncio.run(transcript_costs(arguments.replies, True))
    asyncio.run(stream_cost(arguments.seconds, 50))


if __name__ == "__main__":
    main()
