"""A second model beside the present one: fetched, served and compared, or refused in numbers."""

from __future__ import annotations

import asyncio
from typing import Any

from rvllm_local.history.types import Chat
from rvllm_local.tui.beside import refuse_alone, refuse_beside
from rvllm_local.tui.launcher import Report, ServerLauncher
from rvllm_local.tui.screens.compare import CompareScreen
from rvllm_local.tui.state import ChatSession, EngineView, ModelInfo
from tests.tui.fake_endpoint import FakeEndpoint

GB = 10**9
LATE = ModelInfo("late", served=False, installed=False, needed=3 * GB, fits=True)
VAST = ModelInfo("vast", served=False, needed=40 * GB, room=22 * GB, fits=False)


def session(total: int = 2 * GB, budget: int = 22 * GB) -> ChatSession:
    memory = {"total": total, "budget": budget}
    return ChatSession(Chat("c"), model="small", engine=EngineView(memory=memory))


def test_what_fits_is_not_refused() -> None:
    assert refuse_alone(LATE) == ""
    assert refuse_beside(LATE, session()) == ""
    assert refuse_beside(LATE, ChatSession(Chat("c"))) == ""  # no engine was seen


def test_what_does_not_fit_is_refused_in_numbers() -> None:
    alone = "vast needs about 40.0 GB, and models may take 22.0 GB here"
    assert alone in refuse_alone(VAST) and alone in refuse_beside(VAST, session())
    problem = refuse_beside(LATE, session(budget=4 * GB))
    assert "3.0 GB beside the 2.0 GB of small: together 5.0 GB" in problem
    assert "may take 4.0 GB here" in problem


def test_a_model_that_is_loaded_has_its_room() -> None:
    loaded = ModelInfo("late", size=3 * GB, needed=3 * GB)
    assert refuse_beside(loaded, session(budget=4 * GB)) == ""


class _Lease:
    count, is_over = 2, False

    async def ended(self) -> None:
        await asyncio.Event().wait()

    async def release(self) -> None: ...


class Fetching(ServerLauncher):
    """A server that was started for chats, and fetches into what it serves."""

    def __init__(self, fake: FakeEndpoint) -> None:
        super().__init__(fake.url, None)
        self.lease: Any = _Lease()
        self.fake = fake
        self.fetched: list[str] = []

    def offers(self, served: Any) -> tuple[ModelInfo, ...]:
        return (LATE, VAST)

    async def fetch(self, model: ModelInfo, report: Report) -> None:
        report("fetching late 50%")
        self.fetched.append(model.id)
        self.fake.models.append({"id": model.id})


def test_a_model_that_is_not_here_is_fetched_and_answers_beside(play) -> None:
    fake = FakeEndpoint()

    async def scenario(chat) -> None:
        await chat.say("Hello?")
        await chat.say("/compare late")
        await chat.until(lambda: isinstance(chat.app.screen, CompareScreen))
        await chat.until(lambda: chat.app.driver.sessions.rival.live is None)
        assert chat.app.server.fetched == ["late"]
        assert [body["model"] for body in chat.fake.requests] == ["small", "late"]
        await chat.press("2")
        await chat.until(lambda: len(chat.app.screen_stack) == 1)
        assert chat.session.model == "late"

    play(scenario, fake, server=Fetching(fake))


def test_nothing_is_fetched_for_a_model_without_room(play) -> None:
    fake = FakeEndpoint()
    fake.engine["memory"] = {"total": 2 * GB, "budget": 4 * GB}

    async def scenario(chat) -> None:
        await chat.until(lambda: chat.session.engine is not None)
        await chat.say("Hello?")
        await chat.say("/compare vast")
        await chat.told("needs about 40.0 GB")
        await chat.say("/compare late")
        await chat.told("together 5.0 GB")
        await chat.say("/model vast")
        await chat.told("needs about 40.0 GB")
        assert chat.app.server.fetched == []

    play(scenario, fake, server=Fetching(fake))


def test_without_a_prompt_nothing_is_fetched_to_compare(play) -> None:
    fake = FakeEndpoint()

    async def scenario(chat) -> None:
        await chat.say("/compare late")
        await chat.told("there is no prompt to answer again")
        assert chat.app.server.fetched == []

    play(scenario, fake, server=Fetching(fake))


def test_a_server_of_two_chats_takes_a_model_in_without_ending(play) -> None:
    fake = FakeEndpoint()

    async def scenario(chat) -> None:
        await chat.say("/model late")
        await chat.until(lambda: chat.session.model == "late")
        assert chat.app.server.fetched == ["late"]
        await chat.say("Hello?")
        assert chat.fake.requests[-1]["model"] == "late"

    play(scenario, fake, server=Fetching(fake))


def test_the_present_model_answers_until_the_other_is_loaded(play) -> None:
    fake = FakeEndpoint({"hi": ["hold", "x"]})  # what a model is loaded with
    fake.engine["memory"] = {"total": 2 * GB, "budget": 22 * GB}

    async def scenario(chat) -> None:
        chat.app.server.lease.count = 1
        await chat.until(lambda: chat.session.engine is not None)
        await chat.say("/model late")
        await chat.until(lambda: "loading late" in chat.screen())
        await chat.until(fake.holding.is_set)
        await chat.say("Hello?")
        assert chat.texts[-1] == "Hello there."
        assert chat.session.model == "small"
        fake.release.set()
        await chat.until(lambda: chat.session.model == "late")
        asked = [(body["model"], body.get("max_tokens")) for body in fake.requests]
        assert asked == [("late", 1), ("small", None)]
        assert chat.app.server.model == "late"

    play(scenario, fake, server=Fetching(fake))


def test_the_chat_goes_on_after_a_comparison(play) -> None:
    async def scenario(chat) -> None:
        await chat.say("Hello?")
        await chat.say("/compare large")
        await chat.until(lambda: isinstance(chat.app.screen, CompareScreen))
        await chat.until(lambda: chat.app.driver.sessions.rival.live is None)
        await chat.press("1")
        await chat.until(lambda: len(chat.app.screen_stack) == 1)
        await chat.press("slash", *"compact", "enter")
        await chat.until(lambda: len(chat.fake.requests) == 3)
        await chat.until(lambda: chat.session.live is None)
        assert chat.session.messages[-2].figures == {"kind": "compact"}

    play(scenario)
