"""Finds the server that the chat talks to: the one that is named, the one that runs, or
one that is started.

A server is started only where nobody answers at the default address. All chats share
it, and it ends some time after the last of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rvllm_local.errors import EndpointError
from rvllm_local.models.progress import amounts_in
from rvllm_local.tui.download import DownloadProgress
from rvllm_local.tui.endpoint import ChatEndpoint
from rvllm_local.tui.lease import Lease, socket_path, start_server, take_lease
from rvllm_local.tui.state import ModelInfo

DEFAULT_PORT = 8473
GRACE_S = 60.0  # the server stays this long after the last chat
_POLL_S = 0.15
_LINE_S = 1.0  # after which a download is looked at again
Report = Callable[[str], None]


class ServerLauncher:
    """The server under the chat. `is_child` says whether it was started for chats.

    Without a `url` it is the server at `port` on this machine, or one started there.
    """

    def __init__(
        self,
        url: str | None,
        model: str | None,
        *,
        may_start: bool = True,
        grace_s: float = GRACE_S,
        port: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = url or f"http://127.0.0.1:{port or DEFAULT_PORT}"
        self.model = model
        self.lease: Lease | None = None
        self._may_start = may_start and url is None
        self._grace_s = grace_s
        self._report: Report = _silent
        self._download: DownloadProgress | None = None  # of the server's first model
        self._clock = clock
        self._waits_since = clock()  # for what the server does beside fetching

    @property
    def is_child(self) -> bool:
        """Whether the server was started for chats, and is held by this one."""
        return self.lease is not None and not self.lease.is_over

    async def connect(self, report: Report) -> ChatEndpoint:
        """Attach, or start a server, and wait until it is ready.

        `report` is told what is going on. Raises `EndpointError` that says what went
        wrong.
        """
        self._report = report
        endpoint = ChatEndpoint(self.url)
        try:
            await self._attach(endpoint)
            return endpoint
        except BaseException:
            await endpoint.close()
            raise

    async def _attach(self, endpoint: ChatEndpoint) -> None:
        if self._may_start and not self.is_child:
            await self.stop()  # lets go of a server that has ended
            self.lease = await take_lease(self._socket())
        try:
            await self._wait(endpoint)
        except EndpointError:
            if not self._may_start or self.is_child:
                raise
            await self._start()
            await self._wait(endpoint)

    def command(self) -> list[str]:
        """What is run as the server."""
        model = [self.model] if self.model else []
        program = [sys.executable, "-m", "rvllm_local.cli", "serve"]
        return [*program, *model, "--port", self._port]

    @property
    def _port(self) -> str:
        return self.url.rsplit(":", 1)[1]

    def _socket(self) -> Path:
        return socket_path(self._port)

    async def _start(self) -> None:
        self._report(f"starting a server for {self.model or 'the default model'}")
        self.lease = await start_server(self._socket(), self._grace_s, self.command())

    async def _wait(self, endpoint: ChatEndpoint) -> None:
        """Until the server is ready.

        One that loads or fetches may take its time; one that has ended is an error.
        """
        self._waits_since = self._clock()
        lease = self.lease
        if lease is not None:
            await self._expect_download()  # first: it says how lines are told
            lease.report = lambda _line: self.tell_progress()
        while True:
            if lease is not None and lease.is_over:
                reason = lease.last_error or "no reason given"
                await self.stop()
                raise EndpointError(f"the server that was started ended: {reason}")
            try:
                is_ready, status = await endpoint.health()
            except EndpointError:
                if lease is None:
                    raise
                is_ready, status = False, ""
            if is_ready:
                if lease is not None:  # what it prints later is no news of its start
                    lease.report = _silent
                return
            self.tell_progress(status)
            await asyncio.sleep(_POLL_S)

    def tell_progress(self, status: str = "") -> None:
        """Report what the server does; for how long, but of a download, which says more.

        `status` is what it says of itself where it has printed nothing.
        """
        progress = self._progress() or status or "the server is loading"
        if self.is_fetching:
            self._waits_since = self._clock()
        else:
            progress += f" · for {self._clock() - self._waits_since:.0f} s"
        self._report(progress)

    def _progress(self) -> str:
        """What the server said last, such as how much of a download has come."""
        if self.lease is None or not self.lease.lines:
            return ""
        last = self.lease.lines[-1].removeprefix("rvllm: ")
        if _is_of_download(last) and self._download is not None:
            return self._download.told(last)
        return "" if last.startswith("serving on") else last

    @property
    def is_fetching(self) -> bool:
        """Whether the server that was started fetches its model now."""
        if self.lease is None or self.lease.is_over or not self.lease.lines:
            return False
        return _is_of_download(self.lease.lines[-1].removeprefix("rvllm: "))

    async def _expect_download(self) -> None:
        """The server may have to fetch its model first."""
        name = self.model or "the default model"
        size = await asyncio.to_thread(catalogue_size, name)
        self._download = DownloadProgress(name, size, time.monotonic)

    def offers(self, served: Sequence[ModelInfo]) -> tuple[ModelInfo, ...]:
        """What could be started, beside what is served now.

        Reads the catalogue; may take a moment.
        """
        if not self.is_child:
            return ()
        from rvllm_local.tui.offers import catalogue_models

        return catalogue_models({info.id for info in served})

    async def fetch(
        self,
        model: ModelInfo,
        report: Report,
    ) -> None:
        """Fetch a model while the server goes on answering.

        There is no time limit; cancelling pauses it, for what came is kept. Raises
        `EndpointError` with the reason.
        """
        process = await asyncio.create_subprocess_exec(
            *self.pull_command(model.id),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=2**20,
            start_new_session=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        progress = DownloadProgress(model.id, model.size, time.monotonic)
        said = ""
        try:
            assert process.stdout is not None
            while True:
                line = await _next_line(process.stdout)
                if not line:
                    break
                text = line.decode("utf-8", "replace").strip()
                said = text or said
                report(progress.told(said.removeprefix("rvllm: ")))
            status = await process.wait()
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    # It has a session of its own: what it runs ends with it.
                    os.killpg(process.pid, signal.SIGTERM)
                await process.wait()
        if status:
            reason = said.removeprefix("rvllm: ").removeprefix("error: ")
            raise EndpointError(f"{model.id} was not fetched: {reason or status}")

    def pull_command(self, name: str) -> list[str]:
        """What fetches a model."""
        return [sys.executable, "-m", "rvllm_local.cli", "pull", name]

    async def restart(
        self,
        model: str,
        report: Report,
    ) -> ChatEndpoint:
        """End the server and start one with another model.

        Where that fails, the next `connect` starts the old one.
        """
        self._report = report
        await self.end()
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

    async def end(self) -> None:
        """End the server that was started for chats, and wait for it."""
        lease, self.lease = self.lease, None
        if lease is not None:
            await lease.end_server()

    async def stop(self) -> None:
        """Let go of the server. One that was there before is left as it is."""
        lease, self.lease = self.lease, None
        if lease is not None:
            await lease.release()


def _is_of_download(line: str) -> bool:
    """Whether a line that a server prints says how far a download is."""
    return line.startswith("fetching") or amounts_in(line) is not None


def _silent(_text: str) -> None:
    """For what nobody is told."""


async def _next_line(stream: asyncio.StreamReader) -> bytes:
    """The next line; an empty one where none comes in time, nothing at the end."""
    try:
        # Not `wait_for`: in Python 3.11 it forgets a cancellation, the key that pauses
        # a download, that comes in the same moment as the line.
        async with asyncio.timeout(_LINE_S):
            return await stream.readline()
    except TimeoutError:
        return b"\n"


def catalogue_size(name: str) -> int | None:
    """Bytes of a model that has a name here."""
    from rvllm_local.models.catalogue import Catalogue

    entry = Catalogue.load().entries.get(name.lower())
    return None if entry is None else entry.size
