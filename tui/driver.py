"""Does what the state machine asks for: writes the history, talks to the server, and feeds back what happened.

One asyncio loop; the history's writes run on one thread, in order. Knows no interface: the app and the plain mode
listen to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from rvllm_local.errors import EndpointError, HistoryError
from rvllm_local.history import ChatHistory
from rvllm_local.history.types import Chat, ChatMessage, ToolCall, new_id
from rvllm_local.tui.effects import (
    CancelReply,
    DeleteMessage,
    Effect,
    Generate,
    MoveToMemory,
    ReadSiblings,
    SaveChat,
    SaveMessage,
    UpdateChat,
    UpdateMessage,
)
from rvllm_local.tui.endpoint import ChatEndpoint, ServerGoneError
from rvllm_local.tui.events import (
    ChatOpened,
    ChatStarted,
    Event,
    PromptEdited,
    PromptSubmitted,
    ReplyFailed,
    ReplyFinished,
    ReplyGrew,
    ReplyRegenerated,
    ReplyStopped,
    SavingFailed,
    SiblingsRead,
    UsageReceived,
)
from rvllm_local.tui.reducer import reduce
from rvllm_local.tui.reply_parts import ReplyEnd, ReplyPart, ReplyText, ReplyUsage
from rvllm_local.tui.state import ChatSession

FLUSH_S = (
    1 / 8
)  # how often the words that came are handed on; painting costs by the flush
_T = TypeVar("_T")
Listener = Callable[[ChatSession, Event], None]


class Driver:
    """Holds the session and does its effects. `on_change` is called after each event, `on_effect` gets what is for
    the person: `Notify` and `ReturnPrompt`.
    """

    def __init__(
        self,
        on_change: Listener,
        on_effect: Callable[[Effect], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.session = ChatSession(Chat(new_id()))
        self.history: ChatHistory | None = None
        self.memory = ChatHistory(
            None
        )  # temporary chats, and those that could not be saved
        self.endpoint: ChatEndpoint | None = None
        self.clock = clock
        self._on_change, self._on_effect = on_change, on_effect
        self._effects: asyncio.Queue[Effect] = asyncio.Queue()
        self._worker: asyncio.Task[None] | None = None
        self._replies: dict[str, asyncio.Task[None]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="history")

    def start(self) -> None:
        """Begin to do effects. Needs a running loop."""
        self._worker = asyncio.create_task(self._work())

    def dispatch(self, event: Event) -> None:
        """Something happened."""
        self.session, effects = reduce(self.session, event)
        for effect in effects:
            self._effects.put_nowait(effect)
        self._on_change(self.session, event)

    async def drain(self) -> None:
        """Wait until all effects so far are done."""
        await self._effects.join()

    async def close(self) -> None:
        """Stop the reply, write what there is, and close everything but the server."""
        if self.session.live is not None:
            self.dispatch(ReplyStopped(self.clock()))
        if self._worker is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.drain(), 5)
            tasks = [self._worker, *self._replies.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self.endpoint is not None:
            await self.endpoint.close()
        await self.in_thread(self._close_histories)
        self._thread.shutdown()

    def _close_histories(self) -> None:
        for one in (self.history, self.memory):
            if one is not None:
                one.close()

    async def in_thread(self, function: Callable[..., _T], *values: Any) -> _T:
        """Run a call to the history on its thread."""
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, lambda: function(*values)
        )

    @property
    def store(self) -> ChatHistory:
        """Where the present chat is kept."""
        is_kept = self.history is not None and not self.session.is_temporary
        return self.history if is_kept and self.history is not None else self.memory

    # What a person does

    def submit(self, text: str) -> None:
        """Send a prompt."""
        self.dispatch(PromptSubmitted(text, new_id(), new_id(), self.clock()))

    def regenerate(self, message_id: str) -> None:
        """Answer a prompt again."""
        self.dispatch(ReplyRegenerated(message_id, new_id(), self.clock()))

    def edit(self, message_id: str, text: str) -> None:
        """Send a prompt in place of an older one."""
        self.dispatch(PromptEdited(message_id, text, new_id(), new_id(), self.clock()))

    def stop(self) -> None:
        """Stop the reply and keep what came."""
        self.dispatch(ReplyStopped(self.clock()))

    def new_chat(self, is_temporary: bool = False) -> None:
        """Start an empty chat, with the present model."""
        is_temporary = (
            is_temporary or self.history is None or self.history.read_only is not None
        )
        self.dispatch(
            ChatStarted(Chat(new_id(), model=self.session.model), is_temporary)
        )

    async def open_chat(self, chat_id: str, store: ChatHistory | None = None) -> None:
        """Show a chat of the history."""
        store = store or self.history or self.memory

        def read() -> tuple[Chat | None, list[ChatMessage], dict[str, tuple[int, int]]]:
            return store.chat(chat_id), store.thread(chat_id), store.siblings(chat_id)

        chat, messages, siblings = await self.in_thread(read)
        if chat is None:
            raise HistoryError("this chat is no longer in the history")
        self.dispatch(ChatOpened(chat, tuple(messages), siblings, store is self.memory))

    async def switch_sibling(self, message_id: str, step: int) -> str:
        """Show another version of a message; returns that version's id."""
        chosen = await self.in_thread(self.store.switch_sibling, message_id, step)
        await self.open_chat(self.session.chat.id, self.store)
        return chosen

    async def delete_message(self, message_id: str) -> None:
        """Forget a message and what follows it."""
        await self.in_thread(self.store.delete_message, message_id)
        await self.open_chat(self.session.chat.id, self.store)

    async def branch(self, message_id: str) -> None:
        """Copy the thread up to a message into a chat of its own, and open it."""
        store, chat = self.store, self.session.chat
        copy = Chat(
            new_id(),
            f"{chat.title} (branch)",
            system=chat.system,
            params=chat.params,
            model=chat.model,
        )

        def write() -> None:
            store.add_chat(copy)
            parent: str | None = None
            for one in store.path_to(message_id):
                figures = (one.state, one.model, one.figures)
                texts = (one.role, one.text, one.reasoning, one.tool_calls)
                message = ChatMessage(new_id(), copy.id, parent, *texts, *figures)
                store.add_message(message)
                parent = message.id

        await self.in_thread(write)
        await self.open_chat(copy.id, store)

    async def delete_chat(self, chat_id: str) -> None:
        """Forget a chat; if it is the present one, start a new one."""
        is_present = chat_id == self.session.chat.id
        store = self.store if is_present else (self.history or self.memory)
        await self.in_thread(store.delete_chat, chat_id)
        if is_present:
            self.new_chat()

    # Effects

    async def _work(self) -> None:
        while True:
            effect = await self._effects.get()
            try:
                await self._perform(effect)
            except HistoryError as error:
                await self._give_up_saving(str(error))
            finally:
                self._effects.task_done()

    async def _give_up_saving(self, error: str) -> None:
        """Move the chat to memory before anything else is done with it."""
        self.session, effects = reduce(self.session, event := SavingFailed(error))
        for effect in effects:
            await self._perform(effect)
        self._on_change(self.session, event)

    async def _perform(self, effect: Effect) -> None:
        match effect:
            case SaveChat(chat):
                await self.in_thread(self.store.add_chat, chat)
            case SaveMessage(message):
                await self.in_thread(self.store.add_message, message)
            case UpdateMessage(message):
                await self.in_thread(self.store.update_message, message)
            case DeleteMessage(message_id):
                await self.in_thread(self.store.delete_message, message_id)
            case UpdateChat(chat_id, values):
                await self.in_thread(lambda: self.store.set_chat(chat_id, **values))
            case ReadSiblings(chat_id):
                self.dispatch(
                    SiblingsRead(
                        chat_id, await self.in_thread(self.store.siblings, chat_id)
                    )
                )
            case MoveToMemory(chat, messages):
                await self.in_thread(_copy, self.memory, chat, messages)
            case Generate():
                self._replies[effect.reply_id] = asyncio.create_task(
                    self._generate(effect)
                )
            case CancelReply(reply_id):
                if task := self._replies.pop(reply_id, None):
                    task.cancel()
            case _:
                self._on_effect(effect)

    async def _generate(self, effect: Generate) -> None:
        reply = _Gathered(effect.reply_id, self)
        endpoint = self.endpoint
        try:
            if endpoint is None:
                raise EndpointError("there is no server")
            stream = endpoint.chat(effect.model, effect.messages, effect.params)
            async with contextlib.aclosing(stream) as parts:
                async for part in parts:
                    reply.take(part)
            reply.flush()
            self.dispatch(ReplyFinished(effect.reply_id, reply.finish, self.clock()))
        except EndpointError as error:
            reply.flush()
            is_gone = isinstance(error, ServerGoneError)
            self.dispatch(
                ReplyFailed(effect.reply_id, str(error), self.clock(), is_gone)
            )
        except asyncio.CancelledError:
            raise
        except Exception as error:  # a bug here must end the reply, not hang it
            self.dispatch(
                ReplyFailed(
                    effect.reply_id, f"{type(error).__name__}: {error}", self.clock()
                )
            )
        finally:
            reply.close()
            self._replies.pop(effect.reply_id, None)


def _copy(store: ChatHistory, chat: Chat, messages: tuple[ChatMessage, ...]) -> None:
    if store.chat(chat.id) is None:
        store.add_chat(chat)
    for message in messages:
        if store.message(message.id) is None:
            store.add_message(message)


class _Gathered:
    """Words on their way to the session: the first at once, then eight times a second."""

    def __init__(self, reply_id: str, driver: Driver) -> None:
        self.finish = "stop"
        self._id, self._driver = reply_id, driver
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[ToolCall] = []
        self._chunks, self._at = 0, 0.0
        self._is_first = True
        self._timer: asyncio.TimerHandle | None = None

    def take(self, part: ReplyPart) -> None:
        match part:
            case ReplyEnd(reason):
                self.finish = reason
            case ReplyUsage(prompt, output, cached):
                self.flush()
                self._driver.dispatch(UsageReceived(self._id, prompt, output, cached))
            case ReplyText():
                self._take_text(part)

    def _take_text(self, part: ReplyText) -> None:
        if any(self._reasoning) and part.text:
            self.flush()  # so that the end of the reasoning gets its own time
        self._text.append(part.text)
        self._reasoning.append(part.reasoning)
        self._calls += part.tool_calls
        self._chunks += 1
        self._at = self._driver.clock()
        if self._is_first:
            self._is_first = False
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        self.close()
        if self._chunks:
            texts = ("".join(self._text), "".join(self._reasoning))
            delta = ReplyGrew(
                self._id, self._at, *texts, tuple(self._calls), self._chunks
            )
            self._text, self._reasoning, self._calls, self._chunks = [], [], [], 0
            self._driver.dispatch(delta)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
