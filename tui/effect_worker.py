"""Does what the state machine asks for: writes the history and talks to the server.

One asyncio loop; the history's calls run on one thread, in order. Effects belong to a
chat, and are done in its store even when another chat is shown by then.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from rvllm_local.errors import EndpointError, HistoryError
from rvllm_local.history import ChatHistory
from rvllm_local.history.types import Chat, ChatMessage
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
from rvllm_local.tui.events import Event, ReplyFailed, ReplyFinished, SiblingsRead
from rvllm_local.tui.gatherer import ReplyGatherer

_T = TypeVar("_T")
CLOSING_S = 5.0  # what is still to be written has this long


class EffectWorker(abc.ABC):
    """Does effects in order. `in_memory` are the chats that are kept there alone."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.history: ChatHistory | None = None
        # Temporary chats, and those that could not be saved.
        self.memory = ChatHistory(None)
        self.endpoint: ChatEndpoint | None = None
        self.clock = clock
        self.in_memory: set[str] = set()
        self.unsaved: set[str] = set()  # of those, the ones that were to be kept
        self._effects: asyncio.Queue[tuple[str, Effect]] = asyncio.Queue()
        self._worker: asyncio.Task[None] | None = None
        self._replies: dict[str, asyncio.Task[None]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="history")

    def start(self) -> None:
        """Begin to do effects. Needs a running loop."""
        self._worker = asyncio.create_task(self._work())

    async def drain(self) -> None:
        """Wait until all effects so far are done."""
        await self._effects.join()

    async def end(self) -> None:
        """Write what there is, and close everything but the server."""
        if self._worker is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSING_S):
                    await self.drain()
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

    async def in_thread(
        self,
        function: Callable[..., _T],
        *values: Any,
    ) -> _T:
        """Run a call to the history on its thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: function(*values))

    def store_of(self, chat_id: str) -> ChatHistory:
        """Where a chat is kept."""
        if self.history is None or chat_id in self.in_memory:
            return self.memory
        return self.history

    # What the driver adds

    @abc.abstractmethod
    def dispatch(self, event: Event) -> None:
        """Something happened."""

    @abc.abstractmethod
    def show(
        self,
        chat_id: str,
        effect: Effect,
    ) -> None:
        """Do an effect that is for the person."""

    @abc.abstractmethod
    async def give_up_saving(
        self,
        chat_id: str,
        error: str,
    ) -> None:
        """Move the chat to memory before anything else is done with it."""

    # Effects

    def add_effect(
        self,
        chat_id: str,
        effect: Effect,
    ) -> None:
        """Have an effect done after those that wait."""
        self._effects.put_nowait((chat_id, effect))

    async def _work(self) -> None:
        while True:
            chat_id, effect = await self._effects.get()
            try:
                await self.perform(chat_id, effect)
            except HistoryError as error:
                await self.give_up_saving(chat_id, str(error))
            finally:
                self._effects.task_done()

    async def perform(
        self,
        chat_id: str,
        effect: Effect,
    ) -> None:
        """Do one effect of a chat. Raises `HistoryError`."""
        match effect:
            case Generate():
                self._begin(effect)
            case CancelReply(reply_id):
                if task := self._replies.get(reply_id):
                    task.cancel()
            case ReadSiblings():
                store = self.store_of(chat_id)
                siblings = await self.in_thread(store.siblings, chat_id)
                self.dispatch(SiblingsRead(chat_id, siblings))
            case MoveToMemory(chat, messages):
                await self.in_thread(_copy, self.memory, chat, messages)
            case _:
                await self._write(self.store_of(chat_id), chat_id, effect)

    async def _write(
        self,
        store: ChatHistory,
        chat_id: str,
        effect: Effect,
    ) -> None:
        match effect:
            case SaveChat(chat):
                await self.in_thread(store.add_chat, chat)
            case SaveMessage(message):
                await self.in_thread(store.add_message, message)
            case UpdateMessage(message):
                await self.in_thread(store.update_message, message)
            case DeleteMessage(message_id):
                await self.in_thread(store.delete_message, message_id)
            case UpdateChat(changed_id, values):
                await self.in_thread(lambda: store.set_chat(changed_id, **values))
            case _:
                self.show(chat_id, effect)

    # Replies

    def _begin(self, effect: Generate) -> None:
        """Ask for a reply; its task is known until it has closed its connection."""
        task = asyncio.create_task(self._generate(effect))
        self._replies[effect.reply_id] = task
        task.add_done_callback(lambda _: self._replies.pop(effect.reply_id, None))

    async def _generate(self, effect: Generate) -> None:
        reply_id = effect.reply_id
        reply = ReplyGatherer(reply_id, self.dispatch, self.clock)
        try:
            await self._read_reply(effect, reply)
            reply.flush()
            self.dispatch(ReplyFinished(reply_id, reply.finish, self.clock()))
        except EndpointError as error:
            reply.flush()
            is_gone = isinstance(error, ServerGoneError)
            self.dispatch(ReplyFailed(reply_id, str(error), self.clock(), is_gone))
        except asyncio.CancelledError:
            raise
        except Exception as error:  # a bug here must end the reply, not hang it
            reason = f"{type(error).__name__}: {error}"
            self.dispatch(ReplyFailed(reply_id, reason, self.clock()))
        finally:
            reply.close()

    async def _read_reply(
        self,
        effect: Generate,
        reply: ReplyGatherer,
    ) -> None:
        if self.endpoint is None:
            raise ServerGoneError("there is no server")
        stream = self.endpoint.chat(effect.model, effect.messages, effect.params)
        async with contextlib.aclosing(stream) as parts:
            async for part in parts:
                reply.take(part)


def _copy(
    store: ChatHistory,
    chat: Chat,
    messages: tuple[ChatMessage, ...],
) -> None:
    if store.chat(chat.id) is None:
        store.add_chat(chat)
    for message in messages:
        if store.message(message.id) is None:
            store.add_message(message)
