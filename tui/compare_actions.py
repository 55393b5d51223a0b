"""What a person can do with two models at once: have both answer, side by side."""

from __future__ import annotations

from dataclasses import replace

from textual import work

from rvllm_local.tui.beside import refuse_beside
from rvllm_local.tui.download_actions import DownloadActions
from rvllm_local.tui.notices import attempt, tell
from rvllm_local.tui.screens.dialogs import Pick
from rvllm_local.tui.screens.models import model_choices
from rvllm_local.tui.state import ModelInfo


class CompareActions(DownloadActions):
    """The comparison of two answers."""

    @work(group="command", exclusive=False)
    async def action_chat_compare(self, name: str = "") -> None:
        """Have another model answer the last prompt, and show both answers.

        One that is not served yet is fetched and served, where it has room beside the
        present one.
        """
        models = await self._comparable()
        if not name and len(models) == 1:
            name = models[0].id
        if not name:
            name = await self._pick_rival(models)
        if not name:
            return
        infos = [info for info in models if info.id == name]
        if not infos:
            served = ", ".join(info.id for info in models if info.served)
            reason = f"this server does not serve {name}; it serves {served}"
            tell(self, reason, "warning")
            return
        await self._compare(infos[0])

    async def _compare(self, info: ModelInfo) -> None:
        chat_id = self.driver.session.chat.id
        if problem := refuse_beside(info, self.driver.session):
            tell(self, problem, "warning")
            return
        if not info.served:
            if not self.driver.session.messages:
                tell(self, "there is no prompt to answer again", "warning")
                return
            if not await self.is_added(info):
                return
            if self.driver.session.chat.id != chat_id:
                tell(self, f"{info.id} is here now; /compare {info.id} asks it")
                return
        await self._show_answers(info.id)

    async def _show_answers(self, name: str) -> None:
        from rvllm_local.tui.widgets.answers import compare_screen

        driver = self.driver
        if not driver.compare(name):
            return
        number = await self.push_screen_wait(compare_screen(driver))
        if number == 2:
            driver.take_rival()
        else:
            driver.drop_rival()
        self.composer.focus()

    async def _comparable(self) -> list[ModelInfo]:
        """What is served, and what could be served beside it."""
        driver = self.driver
        served = driver.session.models
        if driver.endpoint is not None:
            served = await attempt(self, driver.endpoint.models()) or served
        offers = {
            info.id: info for info in await driver.in_thread(self.server.offers, ())
        }
        models = []
        for info in served:
            offer = offers.pop(info.id, None)
            needed = None if offer is None else offer.needed
            models.append(replace(info, needed=needed))
        return [*models, *offers.values()]

    async def _pick_rival(self, models: list[ModelInfo]) -> str:
        choices = model_choices(models, self.driver.session.model)
        note = "the same model answers with another draw"
        screen = Pick("Compare with", choices, note)
        return await self.push_screen_wait(screen) or ""
