"""What the chat costs: appending to a long transcript, focus and resize, opening 1,000 messages, a stream at 50 tokens a
second, first paint, and, with --endpoint, what streaming in the chat takes from the server's tokens/s against a bare client.

    python benchmarks/tui_cost.py [--endpoint URL]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from rvllm_local.history import ChatHistory
from rvllm_local.history.types import Chat, ChatMessage
from rvllm_local.tui.app import ChatApp
from rvllm_local.tui.events import ChatChanged, PromptSubmitted, ReplyGrew
from rvllm_local.tui.gatherer import FLUSH_S
from rvllm_local.tui.options import ChatOptions
from rvllm_local.tui.state import ConnectionState, ModelInfo

REST_S = 120.0  # an app that does not come to rest has ended
REPLY = "Some **bold** words and `code` in a reply.\n\n- one\n- two\n\n```python\nx = [1, 2]\n```\n\nAnd an end.\n"


class Nobody:
    """A server that never answers, so that only the chat is measured."""

    is_child = False
    lease = None

    async def connect(self, _report: Any) -> Nobody:
        return self

    async def models(self) -> tuple[ModelInfo, ...]:
        return (ModelInfo("model", 32768),)

    async def health(self) -> None: ...

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


class Timer:
    """What something took: seconds by the clock, and of this process's processor time.

    The second holds on a machine that does other things as well.
    """

    def __init__(self) -> None:
        self._began, self._used = time.perf_counter(), time.process_time()

    def lap(self) -> Lap:
        """What there was since the beginning."""
        return Lap(time.perf_counter() - self._began, time.process_time() - self._used)


class Lap(NamedTuple):
    """Seconds, by the clock and of the processor."""

    clock: float
    processor: float


def report(name: str, laps: Sequence[Lap], limit: str) -> None:
    """Print medians, and the worst by the clock, in milliseconds."""
    clock = statistics.median(lap.clock for lap in laps) * 1e3
    processor = statistics.median(lap.processor for lap in laps) * 1e3
    worst = max(lap.clock for lap in laps) * 1e3
    print(
        f"{name:<8} median {clock:7.1f} ms   worst {worst:7.1f} ms   "
        f"{processor:7.1f} ms of a processor   (limit {limit})",
        flush=True,
    )


async def rest(app: ChatApp) -> None:
    """Wait until the app has nothing left to do."""
    await asyncio.sleep(0)
    async with asyncio.timeout(REST_S):
        await app.wait_for_refresh()


async def transcript_costs(count: int, is_all: bool) -> None:
    """Append, focus and resize in a chat of `count` prompts and replies."""
    app = ChatApp(ChatOptions(), Nobody())
    async with app.run_test(size=(100, 40)) as pilot:
        await pilot.pause(0.5)
        rows = messages(count * 2)
        app.transcript.show_messages(rows, {})
        if is_all:
            app.transcript.bring(0)
            app.transcript.release_anchor()
        await pilot.pause()
        widgets = len(list(app.walk_children()))
        mounted = len(app.transcript._views)
        print(f"{mounted} of {len(rows)} messages are mounted, {widgets} widgets")
        appends = []
        for at in range(20):
            rows = (*rows, ChatMessage(f"n{at}", "c", None, "assistant", REPLY))
            timer = Timer()
            app.transcript.show_messages(rows, {})
            appends.append(timer.lap())
            await rest(app)
        report("append", appends, "5 ms")
        focuses = []
        for at in range(10):
            timer = Timer()
            (app.transcript if at % 2 == 0 else app.composer).focus()
            await rest(app)
            focuses.append(timer.lap())
        report("focus", focuses, "150 ms")
        timer = Timer()
        await pilot.resize_terminal(80, 30)
        await rest(app)
        report("resize", [timer.lap()], "500 ms")
        await app.shut()


async def opening_cost(count: int) -> None:
    """A chat of `count` messages is opened from the disk, until it is painted."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "history.db")
        history = ChatHistory(path)
        history.add_chat(Chat("c", "long"))
        parent = None
        for row in messages(count):
            history.add_message(replace(row, parent_id=parent))
            parent = row.id
        history.close()
        app = ChatApp(ChatOptions(history=path), Nobody())
        async with app.run_test(size=(100, 40)) as pilot:
            await pilot.pause(0.5)
            laps = []
            for _ in range(5):
                app.driver.new_chat()
                await rest(app)
                timer = Timer()
                await app.driver.open_chat("c")
                await rest(app)
                laps.append(timer.lap())
            report(f"open {count}", laps, "2000 ms")
            await app.shut()


async def stream_cost(seconds: float, rate: float) -> None:
    """A reply grows in a chat of 400 messages."""
    app = ChatApp(ChatOptions(), Nobody())
    async with app.run_test(size=(100, 40)) as pilot:
        await pilot.pause(0.5)
        app.transcript.show_messages(messages(400), {})
        app.driver.dispatch(PromptSubmitted("go", "p", "r", 0.0))
        await pilot.pause(0.5)
        words = (REPLY * 100).split(" ")
        timer, sent = Timer(), 0
        while (now := timer.lap().clock) < seconds:
            due = int(now * rate)
            if due > sent:  # the driver joins words to FLUSH_S
                text = " ".join(words[at % len(words)] for at in range(sent, due)) + " "
                app.driver.dispatch(ReplyGrew("r", now, text, num_chunks=due - sent))
                sent = due
            await asyncio.sleep(FLUSH_S)
        lap = timer.lap()
        share = lap.processor / lap.clock
        print(
            f"stream   {rate:.0f} tokens/s for {seconds:.0f} s take {share:6.1%} of one core   (limit 30 %)"
        )
        await app.shut()


def first_paint() -> None:
    """Five new processes, each until its first frame."""
    code = (
        "from rvllm_local.tui.app import ChatApp; from rvllm_local.tui.options import ChatOptions\n"
        "from benchmarks.tui_cost import Nobody, Timer\n"
        "timer = Timer()\n"
        "app = ChatApp(ChatOptions(), Nobody())\n"
        "app._begin = lambda: (print(*timer.lap()), app.exit())\n"
        "app.run(headless=True)\n"
    )
    laps = []
    for _ in range(5):
        process = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        laps.append(Lap(*(float(word) for word in process.stdout.split()[:2])))
    report("paint", laps, "400 ms, after imports")


async def bare(url: str, prompt: str, tokens: int) -> float:
    """Tokens a second, by the server's clock if it tells, of a client that only counts."""
    from rvllm_local.tui.endpoint import ChatEndpoint
    from rvllm_local.tui.reply_parts import ReplyUsage

    endpoint = ChatEndpoint(url)
    model = (await endpoint.models(REST_S))[0].id
    first = last = 0.0
    output, told = 0, None
    async for part in endpoint.chat(
        model,
        [{"role": "user", "content": prompt}],
        {"max_tokens": tokens, "temperature": 0, "ignore_eos": True},
    ):
        last = time.perf_counter()
        first = first or last
        if isinstance(part, ReplyUsage):
            output, told = part.output, part.speed
    await endpoint.close()
    return told or (output - 1) / (last - first)


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
    asyncio.run(opening_cost(1000))
    asyncio.run(stream_cost(arguments.seconds, 50))


if __name__ == "__main__":
    main()
