"""The engine's thread: what was accepted is run, whatever ends meanwhile."""

from __future__ import annotations

import threading
from typing import cast

import pytest

from rvllm_local.engine.core import EngineCore
from rvllm_local.engine.loop import EngineLoop
from rvllm_local.errors import EngineClosedError


class Nothing:
    """A core that never has anything to do."""

    has_work = has_idle_work = False
    num_steps = 0

    def close(self, message: str) -> None:
        pass


def test_every_command_that_is_accepted_is_run() -> None:
    for _ in range(20):
        loop = EngineLoop(lambda: cast(EngineCore, Nothing()))
        accepted, ran = [], []

        def post(
            loop: EngineLoop = loop,
            accepted: list[int] = accepted,
            ran: list[int] = ran,
        ) -> None:
            with pytest.raises(EngineClosedError):
                while True:
                    loop.post(lambda core: ran.append(1))
                    accepted.append(1)

        threads = [threading.Thread(target=post) for _ in range(3)]
        for thread in threads:
            thread.start()
        loop.close()
        for thread in threads:
            thread.join()
        assert len(ran) == len(accepted)
