"""Work with a deadline: it ends at its time whoever still waits for it, and the threads live on."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from rvllm_local.server.generation.workers import Workers
from rvllm_local.server.http.problems import Problem
from tests.support.processes import eventually


def forever() -> None:
    while True:
        pass


def test_work_that_never_ends_is_ended() -> None:
    async def main() -> None:
        workers = Workers(1)
        for _ in range(3):
            with pytest.raises(Problem, match="took longer"):
                await workers.run(forever, 0.1, "it")
        assert await workers.run(lambda: 5, 60.0, "it") == 5
        workers.close()

    asyncio.run(main())


def test_work_ends_though_its_callers_have_gone() -> None:
    async def main() -> None:
        workers = Workers(2)
        callers = [
            asyncio.create_task(workers.run(forever, 0.3, "it")) for _ in range(4)
        ]
        await asyncio.sleep(0.1)
        for caller in callers:
            caller.cancel()
        assert await workers.run(lambda: 5, 60.0, "it") == 5
        workers.close()

    asyncio.run(main())
    assert (
        eventually(
            lambda: (
                not any(
                    thread.name.startswith("rvllm-text")
                    for thread in threading.enumerate()
                )
            ),
            60,
        )
        < 60
    )


@pytest.mark.parametrize("turns", range(6))
def test_a_caller_that_goes_as_the_work_ends_has_gone(turns: int) -> None:
    async def main() -> None:
        workers = Workers(1)
        begun, release = threading.Event(), threading.Event()

        def work() -> None:
            begun.set()
            release.wait()

        async def call() -> None:
            await workers.run(work, 60.0, "working")
            await asyncio.Event().wait()

        caller = asyncio.create_task(call())
        while not begun.is_set():
            await asyncio.sleep(0)
        release.set()
        workers._pool.submit(int).result()  # on the same thread: the work is over
        for _ in range(turns):
            await asyncio.sleep(0)
        caller.cancel()
        await asyncio.wait([caller], timeout=60.0)
        assert caller.cancelled()
        workers.close()

    asyncio.run(main())


def test_a_panic_of_a_library_is_a_failure_without_its_text() -> None:
    class PanicException(BaseException):
        pass

    def panics() -> None:
        raise PanicException("byte index 1 is not a char boundary of `a prompt`")

    async def main() -> None:
        workers = Workers(1)
        with pytest.raises(Problem, match="failed with PanicException") as caught:
            await workers.run(panics, 1.0, "it")
        assert caught.value.status == 500 and "a prompt" not in str(caught.value)
        workers.close()

    asyncio.run(main())


def test_an_end_that_comes_late_harms_nobody() -> None:
    async def main() -> None:
        workers = Workers(2)

        def sleeps() -> int:
            time.sleep(0.02)
            return 7

        async def one() -> None:
            try:
                assert await workers.run(sleeps, 0.02, "it") == 7
            except Problem as problem:
                assert problem.code == "deadline" or problem.status == 503

        for _ in range(40):
            await asyncio.gather(one(), one())
        assert (
            await asyncio.gather(*(workers.run(sleeps, 60.0, "it") for _ in range(4)))
            == [7] * 4
        )
        workers.close()

    asyncio.run(main())
