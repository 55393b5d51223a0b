"""What the server adds between tokens: many silent streams and some busy ones over an engine that only keeps time.

python -m benchmarks.idle_streams [--idle 1000] [--active 64] [--seconds 30]

The engine's process is pretended (tests/support/paced_child.py): 20 steps a second, a token a step and busy stream, whose text
is the time of its sending. All else is real: frames, parsers, server-sent events, sockets. The reader is a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.paced_child import IDLE, STEPS_PER_S
from tests.support.tiny import save_tiny

_CONTENT = re.compile(rb'"content": ?"(\d+) "')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--idle", type=int, default=1000)
    parser.add_argument("--active", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--serve", metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument(
        "--profile", metavar="FILE", help="write a cProfile of the server"
    )
    options = parser.parse_args()
    if options.serve:
        _serve(Path(options.serve), options.profile)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = measure(
            Path(folder), options.idle, options.active, options.seconds, options.profile
        )
    print(json.dumps(found, indent=1))


def measure(
    folder: Path, idle: int, active: int, seconds: float, profile: str | None = None
) -> dict[str, float]:
    """Figures of one run; times in milliseconds, memory in MB."""
    save_tiny("llama", folder / "model")
    command = [
        sys.executable,
        "-m",
        "benchmarks.idle_streams",
        "--serve",
        str(folder / "model"),
    ]
    command += ["--profile", profile] if profile else []
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        return asyncio.run(_read_all(port, server.pid, idle, active, seconds))
    finally:
        server.terminate()
        server.wait(60)
        if server.stdout is not None:
            server.stdout.close()


async def _read_all(
    port: int, pid: int, idle: int, active: int, seconds: float
) -> dict[str, float]:
    errors: list[str] = []
    begun: list[int] = []
    silent = [
        asyncio.create_task(_stream(port, IDLE, None, errors, begun))
        for _ in range(idle)
    ]
    while len(begun) < idle and not errors:
        await asyncio.sleep(0.1)
    before, cpu, began = _memory(pid), _cpu(pid), time.monotonic()
    rows: list[list[tuple[int, int]]] = [[] for _ in range(active)]
    await asyncio.gather(
        *(_stream(port, int(seconds * STEPS_PER_S), row, errors) for row in rows)
    )
    elapsed, after = time.monotonic() - began, _memory(pid)
    cpu = _cpu(pid) - cpu
    errors += [f"a silent stream ended: {task}" for task in silent if task.done()]
    for task in silent:
        task.cancel()
    settled = [row[STEPS_PER_S:] for row in rows]  # without the first second
    latency = sorted((come - sent) / 1e6 for row in settled for sent, come in row)
    added = sorted(
        abs((b[1] - a[1]) - (b[0] - a[0])) / 1e6
        for row in settled
        for a, b in itertools.pairwise(row)
    )
    return {
        "idle": idle, "active": active, "tokens": sum(map(len, rows)), "errors": len(errors),
        "added_itl_p50": _at(added, 0.5), "added_itl_p99": _at(added, 0.99), "added_itl_max": added[-1],
        "latency_p50": _at(latency, 0.5), "latency_p99": _at(latency, 0.99), "latency_max": latency[-1],
        "server_cpu_share": cpu / elapsed, "rss_before": before, "rss_after": after,
    }  # fmt: skip


async def _stream(
    port: int,
    tokens: int,
    row: list[tuple[int, int]] | None,
    errors: list[str],
    begun: list[int] | None = None,
) -> None:
    """Read one stream; note when each token was sent and when it came."""
    body = json.dumps(
        {
            "model": "default",
            "messages": [{"role": "user", "content": "x"}],
            "max_tokens": tokens,
            "stream": True,
        }
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    text = b""
    try:
        while not text.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
            part = await reader.read(65536)
            now = time.monotonic_ns()
            if not part:
                errors.append("the stream ended too soon")
                return
            if begun is not None and not text:
                begun.append(now)
            if row is not None:
                row.extend((int(sent), now) for sent in _CONTENT.findall(part))
            text = (text + part)[-200:]
            if b'"error"' in part or (
                b" 200 OK" not in part and part.startswith(b"HTTP/1.1")
            ):
                errors.append(part[:200].decode())
                return
    finally:
        writer.close()


def _at(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _memory(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _serve(folder: Path, profile: str | None) -> None:
    import cProfile

    from rvllm_local.clients.process.client import ProcessClient
    from rvllm_local.models.locate import ModelFiles
    from rvllm_local.options import EngineOptions
    from rvllm_local.server.app import running
    from rvllm_local.server.http.settings import ServerSettings
    from rvllm_local.server.listener import bound, serve
    from rvllm_local.server.models.registry import Registry
    from rvllm_local.server.models.served_model import Openers
    from rvllm_local.server.prompts.process import PromptProcess

    command = (sys.executable, "-m", "tests.support.paced_child")
    registry = Registry(
        {"tiny": ModelFiles("folder", folder, "tiny")},
        "tiny",
        EngineOptions(),
        openers=Openers(
            lambda files, options: ProcessClient(
                str(files.path), options, command=command
            ),
            PromptProcess,
        ),
    )

    async def run() -> None:
        async with (
            running(registry, ServerSettings(port=0, drain_s=0)) as server,
            registry.lease("tiny"),
        ):
            with bound(server.settings) as listening:
                await serve(server, listening, lambda port: print(port, flush=True))

    profiler = cProfile.Profile()
    if profile:
        profiler.enable()
    asyncio.run(run())
    if profile:
        profiler.dump_stats(profile)
    os._exit(0)


if __name__ == "__main__":
    main()
