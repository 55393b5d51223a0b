"""What a stream costs the chat in a real pseudo-terminal, from the socket to the screen and the history file.

    python benchmarks/tui_stream.py [--rate 50] [--tokens 1000] [--kinds prose,code,...]

A server in this process sends one reply of each kind at the given rate; `rvllm chat` is a process of its own, opened on
a history of 200 replies. Its processor time is read from /proc in four quarters of the reply, so that a cost that grows
with the reply's length shows.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import os
import pty
import signal
import struct
import sys
import tempfile
import termios
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from rvllm_local.history import ChatHistory
from rvllm_local.history.types import Chat, ChatMessage

SETTLED = "Some **bold** words and `code` in a reply.\n\n- one\n- two\n\n```python\nx = [1, 2]\n```\n\nAnd an end.\n"
SENTENCE = "The *whale* swam on through `cold` water while the **moon** rose over the harbour and nobody saw it leave. "
ROWS, COLUMNS = 40, 100
READY_S = 120.0  # the chat has this long to start, and to send a prompt


def text_of(kind: str) -> str:
    """Two thousand tokens and more of one kind of reply."""
    if kind == "prose":
        return (SENTENCE * 4 + "\n\n") * 100
    if kind == "paragraph":
        return SENTENCE * 400
    if kind == "code":
        line = "    value = compute(value, 3.5)  # adds what was seen\n"
        return (
            "```python\n"
            + ("def step(value: int) -> int:\n" + line * 6 + "    return value\n\n")
            * 80
        )
    if kind == "list":
        return "".join(
            f"- item {at} with **bold** words and `code` in it, as lists have\n"
            for at in range(900)
        )
    if kind == "table":
        return "| name | count | note |\n|---|---|---|\n" + "".join(
            f"| row {at} | {at * 7} | a note on it |\n" for at in range(900)
        )
    if kind == "mixed":
        return (
            f"## Part\n\n{SENTENCE}{SENTENCE}\n\n" + SETTLED + "\n1. one\n2. two\n\n"
        ) * 60
    raise SystemExit(f"there is no kind {kind}; known are {', '.join(KINDS)}")


KINDS = ("prose", "mixed", "paragraph", "code", "list", "table", "thoughts")


class Sender:
    """A server that streams one kind of reply at a steady rate. `began` and `ended` are set for each reply."""

    def __init__(self, rate: float, tokens: int) -> None:
        self.rate, self.tokens, self.kind = rate, tokens, "prose"
        self.began, self.ended = asyncio.Event(), asyncio.Event()

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                size = next(
                    (
                        int(one.split(b":")[1])
                        for one in head.split(b"\r\n")
                        if one.lower().startswith(b"content-length")
                    ),
                    0,
                )
                await reader.readexactly(size)
                path = head.split(b" ")[1]
                if path == b"/v1/chat/completions":
                    await self.stream(writer)
                    return
                pages = {
                    b"/health": {"status": "ok"},
                    b"/v1/models": {"data": [{"id": "model", "context_length": 32768}]},
                }
                body = json.dumps(pages.get(path, {})).encode()
                status = b"200 OK" if path in pages else b"404 Not Found"
                writer.write(
                    b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                    % (status, len(body), body)
                )
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def stream(self, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
        )
        name = "reasoning_content" if self.kind == "thoughts" else "content"
        pieces = tokens_of(
            text_of("prose" if self.kind == "thoughts" else self.kind), self.tokens
        )
        began = time.perf_counter()
        self.began.set()
        for at, piece in enumerate(pieces):
            await asyncio.sleep(max(0.0, began + at / self.rate - time.perf_counter()))
            writer.write(
                event(
                    {
                        "choices": [
                            {"index": 0, "delta": {name: piece}, "finish_reason": None}
                        ],
                        "id": "chatcmpl-1",
                        "created": 1,
                        "model": "model",
                        "object": "chat.completion.chunk",
                    }
                )
            )
        self.ended.set()
        writer.write(event({"choices": [{"delta": {}, "finish_reason": "stop"}]}))
        usage = {
            "prompt_tokens": 900,
            "completion_tokens": len(pieces),
            "prompt_tokens_details": {"cached_tokens": 800},
        }
        writer.write(event({"choices": [], "usage": usage}) + b"data: [DONE]\n\n")
        await writer.drain()


def event(value: dict[str, object]) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def tokens_of(text: str, count: int) -> list[str]:
    """Pieces of some four characters, as tokens have."""
    return [text[at : at + 4] for at in range(0, min(len(text), count * 4), 4)]


def history_of(path: Path, replies: int) -> None:
    history = ChatHistory(path)
    history.add_chat(Chat("c", "long"))
    parent = None
    for at in range(replies * 2):
        history.add_message(
            ChatMessage(f"m{at}", "c", parent, ("user", "assistant")[at % 2], SETTLED)
        )
        parent = f"m{at}"
    history.close()


def start(url: str, history: Path) -> tuple[int, int]:
    pid, terminal = pty.fork()
    if pid == 0:
        environ = os.environ | {
            "TERM": "xterm-256color",
            "COLORTERM": "truecolor",
            "RVLLM_CONFIG": str(history.with_name("config.toml")),
        }
        os.chdir(ROOT)
        command = [
            sys.executable,
            "-m",
            "rvllm_local.cli",
            "chat",
            "--endpoint",
            url,
            "--history",
            str(history),
            "--continue",
        ]
        os.execve(sys.executable, command, environ)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    return pid, terminal


def drain(loop: asyncio.AbstractEventLoop, terminal: int, screen: bytearray) -> None:
    """Take what the chat sent to its terminal, as a terminal would."""
    try:
        screen.extend(os.read(terminal, 1 << 16))
    except OSError as error:
        loop.remove_reader(terminal)
        raise SystemExit(
            f"the chat ended: {screen.decode(errors='replace')[-2000:]}"
        ) from error


def used(pid: int) -> float:
    """Seconds of processor time, of all threads."""
    parts = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")


async def measure(sender: Sender, pid: int, terminal: int, kind: str) -> list[float]:
    """The shares of a core in each quarter of a reply."""
    sender.kind = kind
    sender.began.clear()
    sender.ended.clear()
    os.write(terminal, b"go on")
    await asyncio.sleep(0.5)
    os.write(terminal, b"\r")
    async with asyncio.timeout(READY_S):
        await sender.began.wait()
    await asyncio.sleep(1.0)  # the first word mounts the widgets
    shares = []
    span = (sender.tokens / sender.rate - 1.5) / 4
    for _ in range(4):
        before, began = used(pid), time.perf_counter()
        await asyncio.sleep(span)
        shares.append((used(pid) - before) / (time.perf_counter() - began))
    async with asyncio.timeout(READY_S):
        await sender.ended.wait()
    await asyncio.sleep(2.0)
    return shares


async def run(arguments: argparse.Namespace) -> bool:
    sender = Sender(arguments.rate, arguments.tokens)
    server = await asyncio.start_server(sender.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "history.db")
        history_of(path, 200)
        path.with_name("config.toml").touch()
        pid, terminal = start(url, path)
        print(f"pid {pid}", file=sys.stderr)
        screen = bytearray()
        loop.add_reader(terminal, lambda: drain(loop, terminal, screen))
        try:
            async with asyncio.timeout(READY_S):
                while b"model" not in screen:  # the status line names it once ready
                    await asyncio.sleep(0.1)
            await asyncio.sleep(2.0)
            worst = 0.0
            for kind in arguments.kinds.split(","):
                screen.clear()
                shares = await measure(sender, pid, terminal, kind)
                mean = sum(shares) / len(shares)
                worst = max(worst, mean)
                quarters = "  ".join(f"{one:5.1%}" for one in shares)
                print(
                    f"{kind:<10} {mean:6.1%} of one core   by quarter {quarters}   {len(screen) / 1e3:.0f} kB to the terminal",
                    flush=True,
                )
        finally:
            loop.remove_reader(terminal)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            server.close()
    return worst < 0.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=50)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--kinds", default=",".join(KINDS))
    print(f"limit 30 % of one core at {parser.parse_args().rate:.0f} tokens/s")
    sys.exit(not asyncio.run(run(parser.parse_args())))


if __name__ == "__main__":
    main()
