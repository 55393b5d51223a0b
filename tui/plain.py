"""The chat as plain lines: for pipes, screen readers and terminals that can do no more.

The same session and history as the app. Replies go to standard output, everything else to standard error.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from rvllm_local.errors import EndpointError, HistoryError, ParameterError, RvllmError
from rvllm_local.history import ChatHistory
from rvllm_local.history.types import MessageState
from rvllm_local.tui.chat_files import export_chat
from rvllm_local.tui.commands import parse_slash
from rvllm_local.tui.driver import Driver
from rvllm_local.tui.effects import Effect, Notify
from rvllm_local.tui.events import (
    ChatChanged,
    ConnectionChanged,
    Event,
    ModelsListed,
    ReplyFailed,
    ReplyFinished,
    ReplyGrew,
    ReplyStopped,
)
from rvllm_local.tui.launcher import ServerLauncher
from rvllm_local.tui.options import ChatOptions
from rvllm_local.tui.prompts import PreparedPrompt, prepare
from rvllm_local.tui.sanitise import clean, clean_line, clean_pipe, grown, whole
from rvllm_local.tui.settings import parse_parameter
from rvllm_local.tui.start import with_context
from rvllm_local.tui.state import ChatSession, ConnectionState
from rvllm_local.tui.status import status_text

HELP = """/new  /temporary  /chats [words]  /open NUMBER  /model [name]  /set name value  /system text
/regenerate  /export path  /rename title  /quit     Ctrl+C stops a reply; Ctrl+D quits"""


class Plain:
    """A line at a time. `is_terminal` says whether a person sits there; a pipe is read whole, as one prompt."""

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
        self._held = (
            ""  # the last character of the reply while its other half may still come
        )

    async def run(self, prompt: str | None = None) -> int:
        """Talk until the input ends. Returns the exit status: 1 if a reply or the server failed."""
        self.driver.start()
        try:
            await self._open()
            if prompt is not None or not self.is_terminal:
                text = (
                    prompt
                    if prompt is not None
                    else await asyncio.to_thread(self.source.read)
                )
                return (
                    await self._answer(text)
                    if text.strip()
                    else self._say("the prompt is empty", 2)
                )
            return await self._talk()
        except (RvllmError, OSError) as error:
            return self._say(str(error), 1)
        finally:
            await self.driver.close()
            await self.server.stop()

    async def _open(self) -> None:
        try:
            if self.options.history is not None:
                self.driver.history = ChatHistory(self.options.history)
                if self.driver.history.read_only:
                    self._say(f"{self.driver.history.read_only}; this chat is not kept")
        except HistoryError as error:
            self._say(f"{error}. This chat is not kept.")
        self.driver.new_chat(self.options.is_temporary)
        values: dict[str, Any] = {}
        if self.options.system:
            values["system"] = self.options.system
        if self.options.params:
            values["params"] = dict(self.options.params)
        if values:
            self.driver.dispatch(ChatChanged(values))
        if self.options.resume and self.driver.history is not None:
            chats = self.driver.history.chats(1)
            if self.options.resume != "last" or chats:
                await self.driver.open_chat(
                    chats[0].id
                    if self.options.resume == "last"
                    else self.options.resume
                )
        self.driver.endpoint = await self.server.connect(self._report)
        self.driver.dispatch(ModelsListed(await self.driver.endpoint.models()))
        if self.options.model:
            self._choose(self.options.model)
        self.driver.dispatch(ConnectionChanged(ConnectionState.READY))

    def _report(self, text: str) -> None:
        if self.is_terminal:
            self._say(text)

    async def _talk(self) -> int:
        self._say(f"{clean_line(self.driver.session.model)}. /help lists the commands.")
        while True:
            self.err.write("> ")
            self.err.flush()
            line = await self._line()
            if not line:
                return self._say("", 0)
            try:
                if not await self._do(line.rstrip("\n")):
                    return 0
            except (RvllmError, OSError) as error:
                self._say(str(error))

    async def _line(self) -> str:
        """A line from the terminal, read on a thread that does not keep the program alive."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        found: list[str] = []

        def read() -> None:
            with contextlib.suppress(OSError, ValueError, RuntimeError):
                found.append(self.source.readline())
                loop.call_soon_threadsafe(done.set)

        import threading

        threading.Thread(target=read, daemon=True).start()
        await done.wait()
        return found[0] if found else ""

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

    async def _command(self, slash: str, argument: str) -> bool:
        driver = self.driver
        match slash:
            case "/quit":
                return False
            case "/new" | "/temporary":
                driver.new_chat(slash == "/temporary")
                self._say(
                    "a new chat" if slash == "/new" else "a new chat, which is not kept"
                )
            case "/regenerate" if driver.session.messages:
                await self._wait(
                    lambda: driver.regenerate(driver.session.messages[-1].id)
                )
            case "/model":
                self._choose(argument) if argument else self._list(
                    [one.id for one in driver.session.models]
                )
            case "/set" if argument:
                name, _, value = argument.partition(" ")
                params = {
                    **driver.session.chat.params,
                    name: parse_parameter(name, value),
                }
                driver.dispatch(
                    ChatChanged(
                        {"params": {k: v for k, v in params.items() if v is not None}}
                    )
                )
            case "/system":
                driver.dispatch(ChatChanged({"system": argument}))
            case "/rename" if argument:
                driver.dispatch(ChatChanged({"title": argument}))
            case "/chats":
                await driver.drain()
                self._chats(argument)
            case "/export" if argument:
                await self._export(Path(argument).expanduser())
            case _:
                self._say(
                    f"{slash} needs the full chat, or an argument; /help lists the commands"
                )
        return True

    def _choose(self, model: str) -> None:
        if all(one.id != model for one in self.driver.session.models):
            raise ParameterError(
                "model", f"this server has no model {clean_line(model)}"
            )
        self.driver.dispatch(ChatChanged({"model": model}))

    def _chats(self, words: str) -> None:
        history = self.driver.history or self.driver.memory
        hits = (
            [(hit.chat_id, hit.title, hit.excerpt) for hit in history.search(words)]
            if words
            else []
        )
        rows = hits or [
            (chat.id, chat.title, "") for chat in ([] if words else history.chats(20))
        ]
        self._listed = [row[0] for row in rows]
        self._list([f"{row[1]}  {row[2]}" for row in rows])

    def _list(self, rows: list[str]) -> None:
        for number, text in enumerate(rows, 1):
            self._say(f"{number}. {clean_line(text, 100)}")
        if not rows:
            self._say("nothing found")

    async def _show(self, number: str) -> None:
        if not number.isdecimal() or not 1 <= int(number) <= len(self._listed):
            raise ParameterError(
                "number", f"{number!r} is not on the last list of /chats"
            )
        await self.driver.open_chat(self._listed[int(number) - 1])
        for message in self.driver.session.messages:
            self._say(f"\n{'you' if message.role == 'user' else 'assistant'}:")
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

    def _changed(self, session: ChatSession, event: Event) -> None:
        if isinstance(event, ReplyGrew):
            if event.reasoning and not self._is_thinking:
                self._is_thinking = True
                self._say("(thinking)")
            for call in event.tool_calls:
                if call.name:
                    self._say(f"(calls {clean_line(call.name)})")
            text = grown(self._held, event.text)
            self._held = text[len(whole(text)) :]
            self._print(self._clean(whole(text)))
        elif session.live is None and isinstance(
            event, ReplyFinished | ReplyFailed | ReplyStopped
        ):
            self._is_thinking = False
            self._print(self._clean(self._held) + "\n")
            self._held = ""
            if isinstance(event, ReplyFailed):
                self._say(event.error)
            self._ended.set()

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

    def _say(self, text: str, status: int = 0) -> int:
        self.err.write(
            f"{clean(text)}\n"
            if status == 0
            else f"rvllm: error: {clean_line(text, 500)}\n"
        )
        self.err.flush()
        return status


def run_plain(options: ChatOptions, server: ServerLauncher, prompt: str | None) -> int:
    """Run the plain chat on the standard streams."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        return asyncio.run(_run(options, server, prompt))
    except BrokenPipeError:
        return 0
    except EndpointError as error:
        print(f"rvllm: error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    finally:
        _silence(sys.stdout)


async def _run(options: ChatOptions, server: ServerLauncher, prompt: str | None) -> int:
    return await Plain(options, server, sys.stdin, sys.stdout, sys.stderr).run(prompt)


def _silence(stream: IO[str]) -> None:
    """Where nobody reads any more, the interpreter's last flush must not complain."""
    try:
        stream.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
