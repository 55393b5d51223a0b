"""Two answers to one prompt, side by side while they are written."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Static

from rvllm_local.history.types import ChatMessage
from rvllm_local.tui.driver import Driver
from rvllm_local.tui.sanitise import clean_line
from rvllm_local.tui.screens.compare import CompareScreen
from rvllm_local.tui.state import ChatSession, LiveReply
from rvllm_local.tui.widgets.live import LiveReplyView
from rvllm_local.tui.widgets.message_view import MessageView


def compare_screen(driver: Driver) -> CompareScreen:
    """The dialog that shows the present answer and its rival."""
    answers = Answers(driver)
    return CompareScreen(answers, answers.show)


class Answers(Horizontal):
    """The present chat's answer at the left, its rival's at the right."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(id="answers")
        self._driver = driver
        self._left, self._right = Answer(1), Answer(2)

    def compose(self) -> ComposeResult:
        yield self._left
        yield self._right

    def show(self) -> None:
        """Show both as far as they have come."""
        sessions = self._driver.sessions
        now = self._driver.clock()
        self._left.show(sessions.present, now)
        if sessions.rival is not None:
            self._right.show(sessions.rival, now)


class Answer(Vertical):
    """One of the two answers: live, then settled."""

    def __init__(self, number: int) -> None:
        super().__init__(classes="answer" if number == 1 else "answer second")
        self._number = number
        self._head = Static("", classes="title", markup=False)
        self._column = VerticalScroll()
        self._live: LiveReplyView | None = None
        self._settled: MessageView | None = None

    def compose(self) -> ComposeResult:
        yield self._head
        yield self._column

    def show(
        self,
        session: ChatSession,
        now: float,
    ) -> None:
        """Show the answer of a session as far as it has come."""
        self._head.update(self._title(session))
        live = session.live
        if live is not None:
            self._show_live(live, now)
        elif session.messages:
            self._show_settled(session.messages[-1])

    def _show_live(
        self,
        live: LiveReply,
        now: float,
    ) -> None:
        if self._live is None:
            self._live = LiveReplyView()
            self._column.mount(self._live)
        is_at_end = self._column.scroll_y >= self._column.max_scroll_y - 1
        self._live.tell(live, now)
        if is_at_end:
            self._column.scroll_end(animate=False)

    def _show_settled(self, reply: ChatMessage) -> None:
        if self._settled is not None and self._settled.message.id == reply.id:
            return
        for view in (self._live, self._settled):
            if view is not None:
                view.remove()
        self._live = None
        self._settled = MessageView(reply, (0, 1))
        self._column.mount(self._settled)

    def _title(self, session: ChatSession) -> Content:
        name = clean_line(session.model, 40)
        speed = session.stats.tokens_per_second
        figures = ""
        if speed is not None:
            figures = f"  {speed:.0f} tok/s"
        return Content.assemble(f"{self._number}  {name}", (figures, "$muted"))
