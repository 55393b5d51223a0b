"""How a stream is read in batches: by what has come, not by the clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from rvllm_local.tui.read_pace import ReadPace


class Stream:
    """Chunks that are there at once, but for those before which one must wait."""

    def __init__(self, *chunks: bytes) -> None:
        self._chunks = chunks

    async def read(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            if chunk.isupper():
                await asyncio.sleep(0)
            yield chunk


async def rests_after(stream: Stream) -> list[bytes]:
    """Read a stream; the chunks after which there was a rest."""
    pace, chunks, rested = ReadPace(rest_s=0.0), stream.read(), []
    while (chunk := await pace.next(chunks)) is not None:
        before = pace.num_rests
        await pace.rest()
        if pace.num_rests > before:
            rested.append(chunk)
    return rested


def test_the_first_words_are_read_at_once_and_the_next_after_a_rest() -> None:
    stream = Stream(b"A", b"B", b"C", b"d", b"e", b"F", b"G", b"h", b"I")
    assert asyncio.run(rests_after(stream)) == [b"B", b"F", b"I"]


def test_what_has_come_is_read_without_a_rest() -> None:
    assert asyncio.run(rests_after(Stream(*[b"x"] * 50))) == []
    assert asyncio.run(rests_after(Stream(b"A", *[b"x"] * 50))) == []


def test_a_read_that_fails_or_is_given_up_lets_the_next_one_be() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"a"
        raise ValueError("broken")

    async def endless() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    async def main() -> None:
        pace, chunks = ReadPace(), broken()
        assert await pace.next(chunks) == b"a"
        try:
            await pace.next(chunks)
        except ValueError as error:
            assert str(error) == "broken"
        read = asyncio.create_task(pace.next(endless()))
        await asyncio.sleep(0)
        read.cancel()
        assert await asyncio.gather(read, return_exceptions=True)
        assert pace.num_rests == 0

    asyncio.run(main())
