"""The chat as plain lines: for pipes, screen readers and simple terminals.

The same session and history as the app. Replies go to standard output, everything else
to standard error.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from rvllm_local.errors import HistoryError, ParameterError, RvllmError
from rvllm_local.history import ChatHistory
from rvllm_local.history.types import MessageState
from rvllm_local.tui.chat_files import export_chat
from rvllm_local.tui.commands import parse_slash
from rvllm_local.tui.driver import Driver
from rvllm_local.tui.effects import Effect, Notify
from rvllm_local.tui.events import (
    Change,
    ChatChanged,
    ConnectionChanged,
    ModelsListed,
    ReplyFailed,
    ReplyFinished,
    ReplyGrew,
    ReplyStopped,
)
from rvllm_local.tui.launcher import ServerLauncher
from rvllm_local.tui.line_reader import read_line
from rvllm_local.tui.options import ChatOptions
from rvllm_local.tui.prompts import PreparedPrompt, prepare
from rvllm_local.tui.sanitise import clean, clean_line, clean_pipe, grown, whole
from rvllm_local.tui.settings import parse_parameter
from rvllm_local.tui.start import with_context
from rvllm_local.tui.state import ChatSession, ConnectionState
from rvllm_local.tui.status import status_text

_ENDS = (ReplyFinished, ReplyFailed, ReplyStopped)
HELP = """/new  /temporary  /chats [words]  /open NUMBER  /model [name]  /set name value  /system text
/regenerate  /export path  /rename title  /quit     Ctrl+C stops a reply; Ctrl+D quits"""


class Plain:
    """A line at a time. `is_terminal` says whether a person sits there.

    A pipe is read whole, as one prompt.
    """

    def __init__(
        self,
        options: ChatOptions,
        server: ServerLauncher,
        source: IO[str],
        out: IO[str],
        err: IO[str],
    ) -> None:
        self.options, self.server = options, server
        self.source, self.out, self.err = source, out, err
        self.driver = Driver(self._changed, self._effect)
        self.is_terminal = source.isatty()
        self._clean: Callable[[str], str] = clean if out.isatty() else clean_pipe
        self._ended = asyncio.Event()
        self._listed: list[str] = []
        self._is_thinking = False
        self._is_closed = False  # nobody reads standard output any more
        # The last character of the reply, while its other half may still come.
        self._held = ""

    async def run(self, prompt: str | None = None) -> int:
        """Talk until the input ends.

        Returns the exit status: 1 if a reply or the server failed.
        """
        self.driver.start()
        try:
            await self._open()
            if prompt is None and self.is_terminal:
                return await self._talk()
            text = prompt
            if text is None:
                text = await asyncio.to_thread(self.source.read)
            if not text.strip():
                return self._say("the prompt is empty", 2)
            return await self._answer(text)
        except (RvllmError, OSError) as error:
            return self._say(str(error), 1)
        finally:
            await self.driver.close()
            await self.server.stop()

    async def _open(self) -> None:
        driver = self.driver
        self._open_history()
        driver.new_chat(self.options.is_temporary)
        values: dict[str, Any] = {}
        if self.options.system:
            values["system"] = self.options.system
        if self.options.params:
            values["params"] = dict(self.options.params)
        if values:
            driver.dispatch(ChatChanged(values))
        await self._resume()
        driver.endpoint = await self.server.connect(self._report)
        driver.dispatch(ModelsListed(await driver.endpoint.models()))
        if self.options.model:
            self._choose(self.options.model)
        driver.dispatch(ConnectionChanged(ConnectionState.READY))

    def _open_history(self) -> None:
        if self.options.history is None:
            return
        try:
            history = ChatHistory(self.options.history)
        except HistoryError as error:
            self._say(f"{error}. This chat is not kept.")
            return
        self.driver.history = history
        if history.read_only:
            self._say(f"{history.read_only}; this chat is not kept")

    async def _resume(self) -> None:
        history, chat_id = self.driver.history, self.options.resume
        if history is None or not chat_id:
            return
        if chat_id == "last":
            chats = history.chats(1)
            if not chats:
                return
            chat_id = chats[0].id
        await self.driver.open_chat(chat_id)

    def _report(self, text: str) -> None:
        if self.is_terminal:
            self._say(text)

    async def _talk(self) -> int:
        self._say(f"{clean_line(self.driver.session.model)}. /help lists the commands.")
        while True:
            self.err.write("> ")
            self.err.flush()
            line = await read_line(self.source)
            if not line:
                return self._say("", 0)
            try:
                if not await self._do(line.rstrip("\n")):
                    return 0
            except (RvllmError, OSError) as error:
                self._say(str(error))

    async def _do(self, line: str) -> bool:
        """One line of the person's: a command or a prompt. False ends the chat."""
        if not line.strip():
            return True
        if line.strip() == "/help":
            self._say(HELP)
        elif line.startswith("/open "):
            await self._show(line.removeprefix("/open ").strip())
        elif (command := parse_slash(line)) is not None:
            return await self._command(command[0].slash, command[1])
        else:
            await self._answer(line)
        return True

    async def _command(
        self,
        slash: str,
        argument: str,
    ) -> bool:
        driver = self.driver
        match slash:
            case "/quit":
                return False
            case "/new":
                driver.new_chat()
                self._say("a new chat")
            case "/temporary":
                driver.new_chat(is_temporary=True)
                self._say("a new chat, which is not kept")
            case "/regenerate" if driver.session.messages:
                last_id = driver.session.messages[-1].id
                await self._wait(lambda: driver.regenerate(last_id))
            case "/model" if argument:
                self._choose(argument)
            case "/model":
                self._list([info.id for info in driver.session.models])
            case "/chats":
                await driver.drain()
                self._chats(argument)
            case "/export" if argument:
                await self._export(Path(argument).expanduser())
            case _:
                self._change_chat(slash, argument)
        return True

    def _change_chat(
        self,
        slash: str,
        argument: str,
    ) -> None:
        """The commands that change a value of the chat."""
        if slash == "/system":
            self.driver.dispatch(ChatChanged({"system": argument}))
        elif slash == "/rename" and argument:
            self.driver.dispatch(ChatChanged({"title": argument}))
        elif slash == "/set" and argument:
            name, _, text = argument.partition(" ")
            value = parse_parameter(name, text)
            params = dict(self.driver.session.chat.params)
            params.pop(name, None)
            if value is not None:
                params[name] = value
            self.driver.dispatch(ChatChanged({"params": params}))
        else:
            needs = "needs the full chat, or an argument"
            self._say(f"{slash} {needs}; /help lists the commands")

    def _choose(self, model: str) -> None:
        names = [info.id for info in self.driver.session.models]
        if model not in names:
            reason = f"this server has no model {clean_line(model)}"
            raise ParameterError("model", reason)
        self.driver.dispatch(ChatChanged({"model": model}))

    def _chats(self, words: str) -> None:
        """List the newest chats, or those that hold some words."""
        history = self.driver.history or self.driver.memory
        self._listed = []
        rows = []
        if words:
            for hit in history.search(words):
                self._listed.append(hit.chat_id)
                rows.append(f"{hit.title}  {hit.excerpt}")
        else:
            for chat in history.chats(20):
                self._listed.append(chat.id)
                rows.append(f"{chat.title}  ")
        self._list(rows)

    def _list(self, rows: list[str]) -> None:
        for number, text in enumerate(rows, 1):
            self._say(f"{number}. {clean_line(text, 100)}")
        if not rows:
            self._say("nothing found")

    async def _show(self, number: str) -> None:
        is_listed = number.isdecimal() and 1 <= int(number) <= len(self._listed)
        if not is_listed:
            reason = f"{number!r} is not on the last list of /chats"
            raise ParameterError("number", reason)
        await self.driver.open_chat(self._listed[int(number) - 1])
        for message in self.driver.session.messages:
            speaker = "you" if message.role == "user" else "assistant"
            self._say(f"\n{speaker}:")
            self._print(clean(message.text) + "\n")

    async def _export(self, path: Path) -> None:
        await export_chat(self.driver, path)
        self._say(f"exported to {path}")

    async def _answer(self, text: str) -> int:
        """Ask, with the files that the person named; what came by a pipe names none."""
        is_typed = self.is_terminal or bool(self.options.prompt)
        prompt = prepare(text, {}, Path.cwd()) if is_typed else PreparedPrompt(text, {})
        whole_text = with_context(prompt.text, self.options.context)
        status = await self._wait(
            lambda: self.driver.submit(whole_text, prompt.figures)
        )
        if self.options.is_json:
            self._print_json()
        return status

    def _print_json(self) -> None:
        """The answer as one JSON object."""
        messages = self.driver.session.messages
        if messages and messages[-1].role == "assistant":
            reply = messages[-1]
            value = {
                "text": reply.text,
                "reasoning": reply.reasoning,
                "tool_calls": [asdict(call) for call in reply.tool_calls],
                "state": reply.state,
                "model": reply.model,
                **reply.figures,
            }
            self._write(json.dumps(value, ensure_ascii=False) + "\n")

    async def _wait(self, begin: Callable[[], None]) -> int:
        """Begin a reply and wait for its end; Ctrl+C stops it and keeps what came."""
        self._ended.clear()
        loop = asyncio.get_running_loop()
        handles = contextlib.suppress(ValueError, RuntimeError)
        with handles:
            loop.add_signal_handler(signal.SIGINT, self.driver.stop)
        try:
            begin()
            if self.driver.session.live is None:
                return 1
            await self._ended.wait()
            await self.driver.drain()
        finally:
            with handles:
                loop.remove_signal_handler(signal.SIGINT)
        if self._is_closed:
            return 0
        if self.is_terminal:
            self._say(f"[{status_text(self.driver.session, 200)}]")
        messages = self.driver.session.messages
        return int(bool(messages) and messages[-1].state is not MessageState.DONE)

    def _changed(
        self,
        session: ChatSession,
        event: Change,
    ) -> None:
        if isinstance(event, ReplyGrew):
            self._print_more(event)
        elif session.live is None and isinstance(event, _ENDS):
            self._is_thinking = False
            self._print(self._clean(self._held) + "\n")
            self._held = ""
            if isinstance(event, ReplyFailed):
                self._say(event.error)
            self._ended.set()

    def _print_more(self, event: ReplyGrew) -> None:
        if event.reasoning and not self._is_thinking:
            self._is_thinking = True
            self._say("(thinking)")
        for call in event.tool_calls:
            if call.name:
                self._say(f"(calls {clean_line(call.name)})")
        text = grown(self._held, event.text)
        printable = whole(text)
        self._held = text[len(printable) :]
        self._print(self._clean(printable))

    def _effect(self, effect: Effect) -> None:
        if isinstance(effect, Notify):
            self._say(effect.text)

    def _print(self, text: str) -> None:
        if text and not self.options.is_json:
            self._write(text)

    def _write(self, text: str) -> None:
        """Write to standard output; where nobody reads any more, the reply stops."""
        if self._is_closed:
            return
        try:
            self.out.write(text)
            self.out.flush()
        except BrokenPipeError:
            self._is_closed = True
            self._ended.set()
            asyncio.get_running_loop().call_soon(self.driver.stop)

    def _say(
        self,
        text: str,
        status: int = 0,
    ) -> int:
        line = clean(text)
        if status:
            line = f"rvllm: error: {clean_line(text, 500)}"
        self.err.write(f"{line}\n")
        self.err.flush()
        return status
