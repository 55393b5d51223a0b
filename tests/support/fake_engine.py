"""An engine process that misbehaves on request: `python fake_engine.py MODE FD PARENT`.

It speaks the frames of `rvllm_local.clients.process.frames` and loads nothing, so that it starts at once.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
import time
from pathlib import Path

from rvllm_local.clients.process import frames
from rvllm_local.engine.limits import EngineLimits
from rvllm_local.types import FinishReason, StreamEvent

LIMITS = EngineLimits(vocab_size=100, context_length=64, arena_tokens=64, max_open=8)


def command(mode: str) -> tuple[str, ...]:
    """What starts this file as the engine of a `ProcessClient`."""
    return (sys.executable, "-P", str(Path(__file__)), mode)


def main(mode: str, link: socket.socket) -> None:
    while (frame := frames.receive_command(link)) is not None:
        if isinstance(frame, frames.Close):
            if mode != "stubborn":
                return
        elif isinstance(frame, frames.Load):
            load(mode, link)
        elif isinstance(frame, frames.Start):
            start(mode, link, frame)
        elif isinstance(frame, frames.Ask):
            error = frames.Failed("ContextOverflowError", "too long by far", "prompt")
            frames.send(link, frames.Answer(frame.call_id, error=error))


def load(mode: str, link: socket.socket) -> None:
    frames.send(link, frames.Loading("fetching"))
    if mode == "refuses":
        frames.send(
            link,
            frames.Failed("MemoryBudgetError", "too little memory; close something"),
        )
        sys.exit(0)
    if mode == "dies":
        sys.stderr.write("noise\n" * 5000 + "x" * 100_000 + "\nthe reason\n")
        sys.stderr.flush()
        os._exit(3)  # with its connection, not a while after it
    if mode == "mute":
        time.sleep(60)
    frames.send(link, frames.Ready(LIMITS))
    frames.send(link, frames.Beat(0, has_work=False))


def start(mode: str, link: socket.socket, frame: frames.Start) -> None:
    if (
        mode == "stuck"
    ):  # beats go on, steps do not; the engine even says that it has nothing to do
        while True:
            frames.send(link, frames.Beat(1, has_work=False))
            time.sleep(0.05)
    if mode == "unknown":
        link.sendall(struct.pack(">I", 7) + b"garbage")
    if mode == "oversized":
        link.sendall(struct.pack(">I", 2**31) + b"x" * 100_000)
    if mode in ("unknown", "oversized"):
        time.sleep(60)
    if mode == "gives-up":  # as one that is started again and cannot load
        words = "too little memory; close something"
        frames.send(link, frames.Failed("MemoryBudgetError", words))
        os._exit(0)
    if mode == "aborts":
        os.abort()
    if mode == "hangs-up":  # closes the connection and lives on
        link.close()
        threading.Event().wait(60)
    request_id = frame.requests[0].request_id
    if mode == "pieces":  # one byte at a time
        for byte in frames.encode(
            frames.Events(((request_id, StreamEvent("a", (1,))),))
        ):
            link.sendall(bytes([byte]))
    reason = FinishReason.ERROR if mode == "declines" else FinishReason.STOP
    error = "no such grammar" if mode == "declines" else None
    ends = [
        (request_id, StreamEvent("b", (2,), reason, index=row.index, error=error))
        for row in frame.requests
    ]
    frames.send(
        link, frames.Events((*ends, *ends, ("nobody", StreamEvent("?", ()))))
    )  # twice, and to nobody


if __name__ == "__main__":
    main(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))
