"""A server under honest and hostile load: for `hostile` and `soak`.

Honest clients are streams whose gaps are noted; hostile ones note how they ended.
"""

from __future__ import annotations

import collections
import contextlib
import json
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

PATIENCE_S = 180.0  # of a hostile client; every deadline of the server is shorter
ASKED = {"role": "user", "content": "Hm?"}


def name_of(model: str | Path) -> str:
    """The name under which a server has the model of a path."""
    path = Path(model)
    return path.stem if path.suffix == ".gguf" else path.name


@dataclass
class Attacked:
    """A running server; `said` are the last lines of its log."""

    address: str
    process: subprocess.Popen[str]
    said: collections.deque[str] = field(
        default_factory=lambda: collections.deque(maxlen=50)
    )

    def health(self) -> dict[str, Any]:
        """What /health says."""
        answer = httpx.get(f"{self.address}/health", timeout=10)
        health: dict[str, Any] = answer.json()
        return health

    def post(
        self, path: str, body: Mapping[str, Any] | bytes, timeout_s: float = PATIENCE_S
    ) -> httpx.Response:
        """Send a request of its own connection."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx.post(
            f"{self.address}{path}",
            content=content,
            headers={"content-type": "application/json"},
            timeout=timeout_s,
        )


@contextlib.contextmanager
def attacked_server(models: Sequence[str | Path], *flags: str) -> Iterator[Attacked]:
    """`rvllm serve` over these models, the first of them honest and pinned."""
    names = [str(model) for model in models]
    command = [sys.executable, "-m", "rvllm_local.cli", "serve", *names]
    command += [
        "--port",
        "0",
        "--pin",
        name_of(models[0]),
        "--keep-alive",
        "2s",
        "--cache",
        "memory",
        *flags,
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    server = Attacked("", process)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            server.said.append(line)
            if match := re.search(r"serving on (\S+)/v1", line):
                server.address = match[1]
                break
        assert server.address, "".join(server.said)
        reader = threading.Thread(
            target=server.said.extend, args=(process.stderr,), daemon=True
        )
        reader.start()
        while (health := server.health())["status"] != "ok":
            assert health["status"] != "failed", health["message"]
            time.sleep(0.2)
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(60)


class HonestStream(threading.Thread):
    """Asks the default model for one stream after another; `gaps` are in seconds."""

    def __init__(self, server: Attacked) -> None:
        super().__init__(daemon=True)
        self._server = server
        self._is_over = threading.Event()
        self.gaps: list[float] = []
        self.first_s: list[float] = []
        self.problems: list[str] = []

    def run(self) -> None:
        while not self._is_over.is_set():
            try:
                self._stream()
            except (httpx.HTTPError, ValueError) as error:
                self.problems.append(repr(error)[:200])
                time.sleep(0.5)

    def _stream(self) -> None:
        body = {
            "model": "default",
            "messages": [{"role": "user", "content": "Tell a long story."}],
            "max_tokens": 200,
            "stream": True,
            "ignore_eos": True,
        }
        address = f"{self._server.address}/v1/chat/completions"
        before = time.monotonic()
        is_first = True
        with httpx.stream("POST", address, json=body, timeout=PATIENCE_S) as answer:
            if answer.status_code != 200:
                raise ValueError(f"{answer.status_code} {answer.read()[:100]!r}")
            for line in answer.iter_lines():
                if not line:
                    continue
                now = time.monotonic()
                waits = self.first_s if is_first else self.gaps
                waits.append(now - before)
                is_first, before = False, now
                if self._is_over.is_set():
                    return

    def end(self) -> None:
        self._is_over.set()
        self.join(PATIENCE_S)


@contextlib.contextmanager
def honest_streams(server: Attacked, count: int = 2) -> Iterator[list[HonestStream]]:
    """Streams for the length of the block."""
    streams = [HonestStream(server) for _ in range(count)]
    for stream in streams:
        stream.start()
    try:
        yield streams
    finally:
        for stream in streams:
            stream.end()


def gaps_of(streams: Sequence[HonestStream]) -> dict[str, float]:
    """Milliseconds between the parts of streams: median, 99th percentile, longest."""
    gaps = sorted(gap for stream in streams for gap in stream.gaps)
    if not gaps:
        return {"median": 0.0, "p99": 0.0, "longest": 0.0}
    return {
        "median": round(statistics.median(gaps) * 1000, 1),
        "p99": round(gaps[int(len(gaps) * 0.99)] * 1000, 1),
        "longest": round(gaps[-1] * 1000, 1),
    }


@dataclass
class Ends:
    """How hostile requests ended."""

    statuses: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    longest_s: float = 0.0

    def ask(self, server: Attacked, name: str, path: str, body: Any) -> None:
        """Send one, and judge its end: 2xx or 4xx, or 503 that says when to retry."""
        began = time.monotonic()
        try:
            answer = server.post(path, body)
        except httpx.HTTPError as error:
            self.statuses[type(error).__name__] += 1
            self.wrong.append(f"{name}: {error!r}")
            return
        self.longest_s = max(self.longest_s, time.monotonic() - began)
        status = answer.status_code
        self.statuses[str(status)] += 1
        if status >= 500 and "retry-after" not in answer.headers:
            self.wrong.append(f"{name}: {status} {answer.text[:200]}")
        if status >= 400 and not answer.json()["error"]["message"]:
            self.wrong.append(f"{name}: {status} without words")


def processes_below(pid: int) -> list[int]:
    """A process and all that it has started."""
    pids, position = [pid], 0
    children = collections.defaultdict(list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            parts = path.read_text(encoding="ascii", errors="replace").rpartition(")")
            children[int(parts[2].split()[1])].append(int(path.parent.name))
    while position < len(pids):
        pids += children[pids[position]]
        position += 1
    return pids


def sample(pid: int) -> dict[str, float]:
    """Megabytes of a server and of all its processes; descriptors; threads.

    What processes share counts for each with its part: forks share most of what they
    have.
    """
    total = 0
    for each in processes_below(pid):
        total += _resident(each)
    return {
        "server_mb": _resident(pid) / 2**20,
        "all_mb": total / 2**20,
        "descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "threads": len(list(Path(f"/proc/{pid}/task").iterdir())),
        "processes": len(processes_below(pid)),
    }


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        if match := re.search(r"^Pss: +(\d+) kB", text, re.MULTILINE):
            return int(match[1]) * 1024
    return 0
