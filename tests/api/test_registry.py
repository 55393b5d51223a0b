"""Several models by name: loaded when asked for, unloaded when idle, within the memory that there is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from rvllm_local.errors import MemoryBudgetError, ModelNotFoundError
from rvllm_local.models.locate import ModelFiles
from rvllm_local.options import EngineOptions
from rvllm_local.server.http.problems import Problem
from rvllm_local.server.models import loaded_models
from rvllm_local.server.models.registry import Registry
from rvllm_local.server.models.served_model import Openers
from tests.support.api import InspectedHere, PacedClient
from tests.support.prompts_here import PromptsHere

SIZES = {"small": 30, "middle": 50, "large": 80, "giant": 500}


class World:
    """A registry over pretended engines on a machine with room for 100, and a clock that stands still."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.now = 0.0
        self.opening: list[str] = []
        self.opened: list[str] = []
        self.clients: dict[str, PacedClient] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.hanging: set[str] = set()  # models that load once `released` is set
        self.released = threading.Event()
        available = {name: ModelFiles("folder", folder, name) for name in SIZES}
        self.registry = Registry(
            available,
            "small",
            EngineOptions(),
            openers=Openers(self._open, PromptsHere),
            inspection=InspectedHere(SIZES, 100),
            clock=lambda: self.now,
            **options,
        )

    def _open(self, files: ModelFiles, options: EngineOptions) -> PacedClient:
        self.opening.append(files.name)
        assert self.gate.wait(60)
        if files.name in self.hanging:
            assert self.released.wait(60)
        self.opened.append(files.name)
        return self.clients.setdefault(files.name, PacedClient())

    async def use(self, name: str) -> None:
        async with self.registry.lease(name):
            self.now += 1

    async def opens(self, name: str) -> None:
        """Wait until the engine of a model is being opened, behind the gate."""
        async with asyncio.timeout(60):
            while name not in self.opening:
                await asyncio.sleep(0.001)

    @property
    def loaded(self) -> list[str]:
        return [served.name for served in self.registry.loaded()]


Scenario = Callable[[World], Coroutine[Any, Any, None]]


@pytest.fixture
def play(tiny: Path) -> Callable[..., None]:
    """Run a scenario in a world."""

    def run(scenario: Scenario, **options: Any) -> None:
        async def main() -> None:
            world = World(tiny, **options)
            await scenario(world)
            await world.registry.close()

        asyncio.run(main())

    return run


def test_a_model_is_loaded_once_for_all_who_ask(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        await asyncio.gather(*(world.use("default") for _ in range(8)))
        assert world.opened == ["small"]

    play(scenario)


def test_idle_models_make_room_the_longest_unused_first(
    play: Callable[..., None],
) -> None:
    async def scenario(world: World) -> None:
        for name in ("small", "middle", "small", "large"):
            await world.use(name)
        assert world.loaded == ["large"]
        assert world.clients["middle"].is_closed and world.clients["small"].is_closed
        await world.use("small")
        assert world.loaded == ["small"]

    play(scenario)


def test_what_can_never_fit_is_refused_before_anything_is_unloaded(
    play: Callable[..., None],
) -> None:
    async def scenario(world: World) -> None:
        await world.use("small")
        with pytest.raises(MemoryBudgetError):
            await world.use("giant")
        assert world.loaded == ["small"] and not world.clients["small"].is_closed

    play(scenario)


def test_a_pinned_model_stays_and_what_does_not_fit_beside_it_is_refused(
    play: Callable[..., None],
) -> None:
    async def scenario(world: World) -> None:
        for name in ("small", "middle"):
            await world.use(name)
        with pytest.raises(MemoryBudgetError, match="unpin"):
            await world.use("large")
        assert world.loaded == ["small", "middle"]

    play(scenario, pinned=["small"])


def test_a_model_in_use_is_waited_for_not_unloaded(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        async with world.registry.lease("small"):
            with pytest.raises(Problem) as caught:
                await world.use("large")
            assert (caught.value.status, caught.value.code) == (503, "memory_busy")
            assert caught.value.retry_after_s
        await world.use("large")

    play(scenario)


def test_idle_models_go_after_their_time_but_for_pinned_ones(
    play: Callable[..., None],
) -> None:
    async def scenario(world: World) -> None:
        for name in ("small", "middle"):
            await world.use(name)
        world.now += 59
        await world.registry.unload_idle()
        assert world.loaded == ["small", "middle"]
        world.now += 2
        await world.registry.unload_idle()
        assert world.loaded == ["small"]

    play(scenario, pinned=["small"], keep_alive_s=60)


def test_an_unknown_name_is_refused_with_those_that_are_known(
    play: Callable[..., None],
) -> None:
    async def scenario(world: World) -> None:
        for name in ("", "Small", "../small", "x" * 10_000):
            with pytest.raises(Problem, match="giant, large, middle, small") as caught:
                await world.use(name)
            assert len(str(caught.value)) < 300

    play(scenario)


def test_a_failed_load_fails_those_who_waited_and_is_tried_again(
    play: Callable[..., None],
) -> None:
    async def scenario(world: World) -> None:
        world.gate.clear()
        waiting = [asyncio.create_task(world.use("small")) for _ in range(3)]
        await world.opens("small")
        world.gate.set()
        SIZES["small"], before = 1000, SIZES["small"]
        try:
            results = await asyncio.gather(*waiting, return_exceptions=True)
            assert all(
                result is None or isinstance(result, MemoryBudgetError)
                for result in results
            )
        finally:
            SIZES["small"] = before
        await world.use("small")

    play(scenario)


def test_a_load_that_hangs_holds_up_no_other_model(play: Callable[..., None]) -> None:
    async def scenario(world: World) -> None:
        world.hanging.add("middle")
        hanging = asyncio.create_task(world.use("middle"))
        while not world.registry.is_loading("middle"):
            await asyncio.sleep(0)
        await world.use("small")
        world.now += 60
        await world.registry.unload_idle()
        assert world.loaded == []
        await world.use("small")
        assert not hanging.done()
        world.released.set()
        await hanging
        assert sorted(world.loaded) == ["middle", "small"]

    play(scenario, keep_alive_s=60)


def test_memory_is_kept_for_a_model_that_loads(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one waits for it a little, and has its memory once it is idle."""

    async def scenario(world: World) -> None:
        world.hanging.add("middle")
        hanging = asyncio.create_task(world.use("middle"))
        while world.registry._loaded._reserved != {"middle": 50}:
            await asyncio.sleep(0.001)
        monkeypatch.setattr(loaded_models, "_PATIENCE_S", 0.01)
        with pytest.raises(Problem, match=r"middle .* leave no room") as busy:
            await world.use("large")
        assert (busy.value.status, busy.value.code) == (503, "memory_busy")
        monkeypatch.setattr(loaded_models, "_PATIENCE_S", 60.0)
        loaded = world.registry._loaded
        change_until, waits = loaded._change_until, asyncio.Event()

        async def noted(until: float) -> bool:
            waits.set()
            return await change_until(until)

        monkeypatch.setattr(loaded, "_change_until", noted)
        waiting = asyncio.create_task(world.use("large"))
        async with asyncio.timeout(60):
            await waits.wait()
        world.released.set()
        await asyncio.gather(hanging, waiting)
        assert world.loaded == ["large"]

    play(scenario)


def test_an_engine_that_does_not_end_is_not_waited_for_beyond_the_time(
    play: Callable[..., None],
) -> None:
    async def scenario(world: World) -> None:
        await world.use("small")
        ended = threading.Event()
        world.clients["small"].close = ended.wait  # type: ignore[method-assign]
        await world.registry.close(asyncio.get_running_loop().time())
        assert not ended.is_set()
        ended.set()

    play(scenario)


def test_closing_while_a_model_loads_leaves_nothing_open(tiny: Path) -> None:
    async def main() -> None:
        world = World(tiny)
        world.gate.clear()
        waiting = asyncio.create_task(world.use("small"))
        await world.opens("small")
        await world.registry.close()
        world.gate.set()
        with pytest.raises(Problem, match="shutting down"):
            await waiting
        assert world.clients["small"].is_closed

    asyncio.run(main())


def test_a_pin_must_name_a_model(tiny: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="cannot be pinned"):
        World(tiny, pinned=["nobody"])


def test_a_model_that_was_fetched_since_can_be_asked_for(
    play: Callable[..., None], tiny: Path
) -> None:
    fetched: dict[str, ModelFiles] = {}

    async def scenario(world: World) -> None:
        with pytest.raises(Problem):
            world.registry.resolve("late")
        fetched["late"] = ModelFiles("folder", tiny, "middle")
        await world.registry.find_models()
        assert "late" in [row.name for row in world.registry.listed()]
        await world.use("late")
        assert world.opened == ["middle"]

    play(scenario, finder=lambda: fetched)
