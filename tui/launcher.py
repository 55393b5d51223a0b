"""Finds the server that the chat talks to: the one that is named, the one that runs, or one started as a child.

A child is started only where nobody answers at the default address, and ended only by who started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence

from rvllm_local.errors import EndpointError
from rvllm_local.tui.endpoint import ChatEndpoint
from rvllm_local.tui.state import ModelInfo

DEFAULT_URL = "http://127.0.0.1:8473"
LEAST_BESIDE = (
    2**30
)  # bytes that a plan needs beside the weights, before the model is here and can be planned exactly
_STOP_S = 10.0


class ServerLauncher:
    """The server under the chat. `endpoint` is set once it answers; `is_child` says who ends it."""

    def __init__(
        self, url: str | None, model: str | None, *, may_start: bool = True
    ) -> None:
        self.url = url or DEFAULT_URL
        self.model = model
        self.is_child = False
        self._may_start = may_start and url is None
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._said: deque[str] = deque(maxlen=20)
        self._report: Callable[[str], None] = lambda text: None

    async def connect(self, report: Callable[[str], None]) -> ChatEndpoint:
        """Attach, or start a child and wait until it is ready; `report` is told what is going on.

        Raises `EndpointError` that says what went wrong.
        """
        self._report = report
        if self._process is not None and self._process.returncode is not None:
            self._process, self.is_child = (
                None,
                False,
            )  # it ended meanwhile; another may be started
        endpoint = ChatEndpoint(self.url)
        try:
            try:
                await self._wait(endpoint)
            except EndpointError:
                if not self._may_start or self.is_child:
                    raise
                await self._start()
                await self._wait(endpoint)
            return endpoint
        except BaseException:
            await endpoint.close()
            raise

    def command(self) -> list[str]:
        """What is run as the child."""
        port = self.url.rsplit(":", 1)[1]
        model = [self.model] if self.model else []
        return [
            sys.executable,
            "-m",
            "rvllm_local.cli",
            "serve",
            *model,
            "--port",
            port,
        ]

    async def _start(self) -> None:
        report = self._report
        report(f"starting a server for {self.model or 'the default model'}")
        self._said.clear()
        self._process = await asyncio.create_subprocess_exec(
            *self.command(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # Ctrl+C belongs to the chat
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        self.is_child = True
        self._reader = asyncio.create_task(self._read(self._process))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # a line beyond the reader's limit
                continue
            if not line:
                return
            text = line.decode("utf-8", "replace").strip()
            if text:
                self._said.append(text)
                self._report(text.removeprefix("rvllm: "))

    async def _wait(self, endpoint: ChatEndpoint) -> None:
        """Until the server is ready. One that is loading may take its time; one that is gone is an error."""
        began = time.monotonic()
        refusals_until = began + (60 if self.is_child else 0)
        while True:
            process = self._process
            if process is not None and process.returncode is not None:
                told = next(
                    (line for line in reversed(self._said) if "error" in line),
                    "".join(list(self._said)[-1:]),
                )
                self.is_child, self._process = False, None
                raise EndpointError(
                    f"the server that was started ended: {told.removeprefix('rvllm: ') or 'no reason given'}"
                )
            try:
                is_ready, status = await endpoint.health()
            except EndpointError:
                if time.monotonic() > refusals_until:
                    raise
                await asyncio.sleep(0.15)
                continue
            if is_ready:
                return
            self._report(
                f"{self._progress() or status or 'the server is loading'} · {time.monotonic() - began:.0f} s"
            )
            await asyncio.sleep(0.15)

    def _progress(self) -> str:
        """What the child said last, such as how much of a download has come."""
        last = (
            self._said[-1].removeprefix("rvllm: ")
            if self._said and self.is_child
            else ""
        )
        return "" if last.startswith("serving on") else last

    def offers(self, served: Sequence[ModelInfo]) -> tuple[ModelInfo, ...]:
        """What a child could be started with, beside what is served now. Reads the catalogue; may take a moment."""
        if not self.is_child:
            return ()
        from rvllm_local.machine import device_memory, is_on_cpu
        from rvllm_local.memory.plan import default_reserve
        from rvllm_local.models.cache_folder import models_folder
        from rvllm_local.models.catalogue import Catalogue

        names = {one.id for one in served}
        room = device_memory() - default_reserve(device_memory())
        return tuple(
            ModelInfo(
                entry.name,
                served=False,
                installed=(models_folder() / entry.name / entry.file).is_file(),
                size=entry.size,
                fits=entry.weight_bytes(is_float32=is_on_cpu()) + LEAST_BESIDE <= room,
                note="starts anew",
            )
            for entry in Catalogue.load().entries.values()
            if entry.name not in names
        )

    async def restart(self, model: str, report: Callable[[str], None]) -> ChatEndpoint:
        """End the child and start one with another model. Where that fails, the next `connect` starts the old one."""
        self._report = report
        await self.stop()
        before, self.model = self.model, model
        endpoint = ChatEndpoint(self.url)
        try:
            await self._start()
            await self._wait(endpoint)
            return endpoint
        except BaseException:
            self.model = before
            await endpoint.close()
            raise

    async def stop(self) -> None:
        """End the child, if there is one. A server that was there before is left as it is."""
        process, self._process = self._process, None
        if process is None or not self.is_child:
            return
        self.is_child = False
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOP_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if self._reader is not None:
            await asyncio.gather(self._reader, return_exceptions=True)
