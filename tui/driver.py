"""Does what the state machine asks for: writes the history, talks to the server, and feeds back what happened.

One asyncio loop; the history's writes run on one thread, in order. Knows no interface: the app and the plain mode
listen to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from rvllm_local.errors import EndpointError, HistoryError
from rvllm_local.history import ChatHistory
from rvllm_local.history.types import (
    Chat,
    ChatMessage,
    Deleted,
    new_id,
)
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
    ChatChanged,
    ChatOpened,
    ChatStarted,
    CompactionAsked,
    Event,
    PromptEdited,
    PromptSubmitted,
    PromptUnqueued,
    ReplyFailed,
    ReplyFinished,
    ReplyRegenerated,
    ReplyStopped,
    SavingFailed,
    SiblingsRead,
)
from rvllm_local.tui.gatherer import ReplyGatherer
from rvllm_local.tui.payload import typed_text
from rvllm_local.tui.reducer import reduce
from rvllm_local.tui.state import ChatSession

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
        self._deleted: tuple[ChatHistory, Deleted] | None = None
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
        for store in (self.history, self.memory):
            if store is not None:
                store.close()

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

    def submit(self, text: str, figures: Mapping[str, Any] | None = None) -> None:
        """Send a prompt, or let it wait in line."""
        at = self.clock()
        self.dispatch(PromptSubmitted(text, new_id(), new_id(), at, figures or {}))

    def unqueue(self) -> None:
        """Take the last waiting prompt back."""
        self.dispatch(PromptUnqueued())

    def compact(self) -> None:
        """Go on from a summary."""
        self.dispatch(CompactionAsked(new_id(), new_id(), self.clock()))

    def regenerate(self, message_id: str) -> None:
        """Answer a prompt again."""
        self.dispatch(ReplyRegenerated(message_id, new_id(), self.clock()))

    def edit(
        self, message_id: str, text: str, figures: Mapping[str, Any] | None = None
    ) -> None:
        """Send a prompt in place of an older one."""
        ids = (new_id(), new_id())
        at = self.clock()
        self.dispatch(PromptEdited(message_id, text, *ids, at, figures or {}))

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
        store = self.store
        sibling = await self.in_thread(store.switch_sibling, message_id, step)
        await self.open_chat(self.session.chat.id, store)
        return sibling

    async def delete_message(self, message_id: str) -> None:
        """Forget a message and what follows it; `undo` brings it back."""
        store = self.store
        deleted = await self.in_thread(store.delete_message, message_id)
        if deleted is not None:
            self._deleted = (store, deleted)
        await self.open_chat(self.session.chat.id, store)

    async def undo(self) -> bool:
        """Bring back what was deleted last; False where there is nothing."""
        if self._deleted is None:
            return False
        (store, deleted), self._deleted = self._deleted, None
        await self.in_thread(store.restore, deleted)
        await self.open_chat(deleted.chat_id, store)
        return True

    async def earlier_prompts(self, limit: int) -> list[str]:
        """What was typed in all kept chats, newest first."""
        store = self.history or self.memory
        messages = await self.in_thread(store.prompts, limit)
        return [typed_text(message) for message in messages]

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
            parents: list[str] = []
            for message in store.path_to(message_id):
                parent = parents[-1] if parents else None
                parents.append(new_id())
                store.add_message(
                    replace(message, id=parents[-1], chat_id=copy.id, parent_id=parent)
                )

        await self.in_thread(write)
        await self.open_chat(copy.id, store)

    async def rename_chat(self, chat_id: str, title: str) -> None:
        """Give a chat another title, the present one or another."""
        if chat_id == self.session.chat.id:
            self.dispatch(ChatChanged({"title": title}))
            await self.drain()
            return
        store = self.history or self.memory
        await self.in_thread(lambda: store.set_chat(chat_id, title=title))

    async def delete_chat(self, chat_id: str) -> None:
        """Forget a chat; if it is the present one, start a new one."""
        is_present = chat_id == self.session.chat.id
        store = self.store if is_present else (self.history or self.memory)
        deleted = await self.in_thread(store.delete_chat, chat_id)
        if deleted is not None:
            self._deleted = (store, deleted)
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
                self._begin(effect)
            case CancelReply(reply_id):
                if task := self._replies.get(reply_id):
                    task.cancel()
            case _:
                self._on_effect(effect)

    def _begin(self, effect: Generate) -> None:
        """Ask for a reply; its task is known until it has closed its connection."""
        task = asyncio.create_task(self._generate(effect))
        self._replies[effect.reply_id] = task
        task.add_done_callback(lambda _: self._replies.pop(effect.reply_id, None))

    async def _generate(self, effect: Generate) -> None:
        reply = ReplyGatherer(effect.reply_id, self.dispatch, self.clock)
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


def _copy(store: ChatHistory, chat: Chat, messages: tuple[ChatMessage, ...]) -> None:
    if store.chat(chat.id) is None:
        store.add_chat(chat)
    for message in messages:
        if store.message(message.id) is None:
            store.add_message(message)
