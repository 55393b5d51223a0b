"""What embeddings cost the streams beside them, and what packing saves.

python -m benchmarks.embedding_pace [--shape tiny small] [--texts 10000] [--json FILE]

A server has the default model and an encoder with random weights: tiny (2 layers of 32)
or small (12 layers of 384, the shape of bge-small). Four streams run alone for a while,
then while all texts are embedded, then alone again. The gap between tokens is taken at
the reader, a process of its own. Then short texts go one at a time, and in one request.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import multiprocessing
import random
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx

from tests.support.pooled import WORDS, save_encoder
from tests.support.served import rvllm_serve

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2},
    "small": {"num_hidden_layers": 12, "hidden_size": 384, "num_attention_heads": 12},
}
STREAMS = 4
MOST_GAP = 1.2  # of the P99 without embeddings
LEAST_PACKED = 4.0  # times as fast as one at a time
_SETTLE_S = 2.0  # of the streams, before gaps count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--texts", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=1000, help="texts of a request")
    parser.add_argument("--words", type=int, default=24, help="most words of a text")
    parser.add_argument("--short", type=int, default=1000, help="texts to be packed")
    parser.add_argument("--alone", type=float, default=20.0, help="seconds, twice")
    parser.add_argument("--most", type=float, default=240.0, help="seconds embedding")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for shape in options.shape:
        row = {"shape": shape, **measure(shape, options)}
        print(json.dumps(row), flush=True)
        rows.append(row)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


def measure(shape: str, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one encoder; gaps in milliseconds."""
    chooser = random.Random(25)
    with tempfile.TemporaryDirectory() as folder:
        encoder = save_encoder(Path(folder) / "encoder", SHAPES[shape])
        models = [options.model, encoder]
        with (
            rvllm_serve(models) as (base, _),
            httpx.Client(base_url=base, timeout=600) as client,
        ):
            embed(client, ["w1"])  # loaded
            row = _gaps(base, client, _texts(chooser, options), options)
            short = [_text(chooser, 5) for _ in range(options.short)]
            return {**row, **_packing(client, short)}


def _text(chooser: random.Random, num_words: int) -> str:
    return " ".join(chooser.choices(WORDS, k=num_words))


def _texts(chooser: random.Random, options: argparse.Namespace) -> list[str]:
    texts = []
    for _ in range(options.texts):
        texts.append(_text(chooser, chooser.randint(1, options.words)))
    return texts


def embed(client: httpx.Client, texts: list[str]) -> None:
    """Have texts read."""
    body = {"model": "encoder", "input": texts}
    client.post("/v1/embeddings", json=body).raise_for_status()


def _gaps(
    base: str, client: httpx.Client, texts: list[str], options: argparse.Namespace
) -> dict[str, Any]:
    """Gaps of streams alone, beside the embedding of texts, and alone again."""
    here, there = multiprocessing.Pipe()
    reader = multiprocessing.Process(target=read_streams, args=(base, there))
    reader.start()
    here.recv()
    time.sleep(_SETTLE_S)
    marks = [time.monotonic()]
    time.sleep(options.alone)
    marks.append(time.monotonic())
    num_read = 0
    until = marks[1] + options.most
    for start in range(0, len(texts), options.batch):
        part = texts[start : start + options.batch]
        embed(client, part)
        num_read += len(part)
        if time.monotonic() > until:
            break
    marks.append(time.monotonic())
    time.sleep(options.alone)
    marks.append(time.monotonic())
    here.send("end")
    gaps = here.recv()
    reader.join()
    parts = []
    for begin, end in itertools.pairwise(marks):
        parts.append(sorted(gap for at, gap in gaps if begin <= at <= end))
    alone = sorted([*parts[0], *parts[2]])
    beside, seconds = parts[1], marks[2] - marks[1]
    return {
        "alone_p50_ms": at(alone, 0.5), "alone_p99_ms": at(alone, 0.99),
        "first_alone_p99_ms": at(parts[0], 0.99), "last_alone_p99_ms": at(parts[2], 0.99),
        "beside_p50_ms": at(beside, 0.5), "beside_p99_ms": at(beside, 0.99),
        "p99_ratio": round(at(beside, 0.99) / at(alone, 0.99), 3), "most_p99_ratio": MOST_GAP,
        "gaps": [len(part) for part in parts], "embedded": num_read, "embedding_s": round(seconds, 2),
        "texts_per_s": round(num_read / seconds, 1),
    }  # fmt: skip


def at(ordered: list[float], share: float) -> float:
    """A quantile of sorted seconds, in milliseconds."""
    return round(1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)


def _packing(client: httpx.Client, texts: list[str]) -> dict[str, Any]:
    """Seconds of short texts one at a time, and in one request."""
    embed(client, texts[:50])
    began = time.monotonic()
    for text in texts:
        embed(client, [text])
    middle = time.monotonic()
    embed(client, texts)
    one, packed = middle - began, time.monotonic() - middle
    return {
        "one_at_a_time_s": round(one, 3),
        "packed_s": round(packed, 3),
        "packed_times": round(one / packed, 2),
        "least_times": LEAST_PACKED,
    }


def read_streams(base: str, pipe: Connection) -> None:
    """Read streams until the pipe says so; sends `(when, gap)` of each token."""
    gaps: list[tuple[float, float]] = []
    is_over = threading.Event()

    async def main() -> None:
        begun = asyncio.Semaphore(0)
        address = httpx.URL(base)
        tasks = []
        for number in range(STREAMS):
            stream = _stream(str(address.host), address.port or 80, number, gaps, begun)
            tasks.append(asyncio.create_task(stream))
        for _ in range(STREAMS):
            await begun.acquire()
        pipe.send("begun")
        await asyncio.to_thread(pipe.recv)
        is_over.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())
    pipe.send(gaps)


async def _stream(
    host: str,
    port: int,
    number: int,
    gaps: list[tuple[float, float]],
    begun: asyncio.Semaphore,
) -> None:
    """One stream after another, each of many tokens."""
    is_first = True
    while True:
        body = json.dumps({
            "model": "default", "prompt": f"Tale {number}: once upon a time", "stream": True,
            "max_tokens": 2000, "ignore_eos": True, "temperature": 1.0, "seed": number,
        }).encode()  # fmt: skip
        reader, writer = await asyncio.open_connection(host, port)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        before: float | None = None
        try:
            while line := await reader.readline():
                if line.startswith(b"data: [DONE]"):
                    break
                if not line.startswith(b"data: "):
                    continue
                now = time.monotonic()
                if before is not None:
                    gaps.append((now, now - before))
                elif is_first:
                    begun.release()
                    is_first = False
                before = now
        finally:
            writer.close()


if __name__ == "__main__":
    main()
