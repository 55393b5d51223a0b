"""What a process has said last is there as soon as its end is."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import IO

import pytest

from rvllm_local.clients.process.error_lines import ErrorLines

Pipe = tuple[IO[bytes], int]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """A pipe's end to read from, and the descriptor of the other one."""
    reading, writing = os.pipe()
    stream = os.fdopen(reading, "rb")
    yield stream, writing
    stream.close()


def test_words_are_there_while_others_hold_the_pipe(pipe: Pipe) -> None:
    stream, writing = pipe
    lines = ErrorLines(stream)
    os.write(writing, b"rank 1 of 2 ended\nand more\n")
    lines.read()
    assert lines.last(1) == ["and more"]
    assert lines.last(3) == ["rank 1 of 2 ended", "and more"]
    lines.read()
    os.write(writing, b"later\n")
    lines.clear()
    assert lines.last(3) == []
    os.close(writing)


def test_a_thread_reads_to_the_end(pipe: Pipe) -> None:
    stream, writing = pipe
    lines = ErrorLines(stream)
    keeping = threading.Thread(target=lines.keep)
    keeping.start()
    for piece in (b"one li", b"ne\n", b"\x00\n[ring] noise\n", b"the last"):
        os.write(writing, piece)
    os.close(writing)
    keeping.join(60)
    assert lines.last(3) == ["one line", "the last"]
    assert stream.closed
    lines.read()


def test_a_line_that_never_ends_takes_no_memory(pipe: Pipe) -> None:
    stream, writing = pipe
    lines = ErrorLines(stream)
    os.write(writing, b"x" * 20_000)
    lines.read()
    assert [len(line) for line in lines.last(9)] == [500] * 4
    os.close(writing)
