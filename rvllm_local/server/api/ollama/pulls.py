"""Fetches a model for a client, and tells how far it is, a line of JSON at a time.

The fetching is a process of its own: it can be ended at any time, and goes on the next
time from where it stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.responses import Response

from rvllm_local.models.catalogue import Catalogue
from rvllm_local.models.progress import amounts_in
from rvllm_local.models.repository import parse_repository
from rvllm_local.server.http.problems import Problem
from rvllm_local.server.http.replies import JSONReply
from rvllm_local.server.models.names import LATEST
from rvllm_local.server.models.registry import Registry

_HUB_HOSTS = ("hf.co/", "huggingface.co/")
_LONGEST_LINE = 2**20
_SILENT_S = 5.0


class Pull:
    """One fetch of a model by its catalogue name, or its name on the hub."""

    def __init__(
        self,
        name: str,
        cache_dir: Path | None,
        registry: Registry,
        program: str = sys.executable,
    ) -> None:
        """`program` is the Python that fetches.

        Raises `Problem` for a name that can mean no model to fetch.
        """
        self._program = program
        self._cache_dir, self._registry = cache_dir, registry
        bare = name.removesuffix(LATEST)
        self._is_here = any(row.name == bare for row in registry.listed())
        self._name = bare if self._is_here else _fetched_name(bare)
        entry = Catalogue.load().entries.get(self._name.lower())
        self._size = 0 if entry is None else entry.size

    async def lines(self) -> AsyncIterator[bytes]:
        """A line for each step; the last says success. Raises `Problem`."""
        yield _line({"status": "pulling manifest"})
        if not self._is_here:
            async for line in self._progress():
                yield line
        await self._registry.find_models()
        for status in ("verifying sha256 digest", "writing manifest", "success"):
            yield _line({"status": status})

    async def whole(self) -> Response:
        """The answer when all is there."""
        async for _ in self.lines():
            pass
        return JSONReply({"status": "success"})

    def problem(self, problem: Problem) -> bytes:
        """What a stream tells of a failure."""
        return _line(problem.ollama())

    async def _progress(self) -> AsyncIterator[bytes]:
        """Run the fetching process; an empty part stands for its silence."""
        environ = os.environ | {"PYTHONUNBUFFERED": "1"}
        if self._cache_dir is not None:
            environ["RVLLM_CACHE_DIR"] = str(self._cache_dir)
        process = await asyncio.create_subprocess_exec(
            *(self._program, "-m", "rvllm_local.cli", "pull", self._name),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            limit=_LONGEST_LINE,
            start_new_session=True,
            env=environ,
        )
        said = ""
        try:
            async for text in _said_by(process):
                if not text:
                    yield b""
                    continue
                said = text
                yield self._told(text)
            status = await process.wait()
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                await process.wait()
        if status:
            reason = said.removeprefix("error: ")
            raise Problem(500, f"{self._name} was not fetched: {reason}", "download")

    def _told(self, text: str) -> bytes:
        """A line of the process, with the bytes that it names."""
        amounts = amounts_in(text)
        if amounts is None:
            return _line({"status": text})
        came, whole = amounts
        if whole is None and not self._size:
            return _line({"status": text})
        completed, total = round(came), round(whole or self._size)
        if whole is None:
            completed = min(total, completed)
        return _line(
            {
                "status": f"pulling {self._name}",
                "digest": self._name,
                "total": total,
                "completed": completed,
            }
        )


async def _said_by(process: asyncio.subprocess.Process) -> AsyncIterator[str]:
    """The lines of a process; an empty one after every silence."""
    assert process.stderr is not None
    reading = asyncio.ensure_future(process.stderr.readline())
    try:
        while True:
            done, _ = await asyncio.wait({reading}, timeout=_SILENT_S)
            if not done:
                yield ""
                continue
            line = reading.result()
            if not line:
                return
            yield line.decode("utf-8", "replace").strip().removeprefix("rvllm: ")
            reading = asyncio.ensure_future(process.stderr.readline())
    finally:
        reading.cancel()


def _fetched_name(name: str) -> str:
    """The name that fetches a model. Raises `Problem` 404 for one that means none."""
    bare = name
    for host in _HUB_HOSTS:
        bare = bare.removeprefix(host)
    if bare.lower() in Catalogue.load().entries or parse_repository(bare) is not None:
        return bare
    raise Problem(
        404,
        "this name is neither in the catalogue nor a repository of the hub, like "
        "owner/name; rvllm ls lists the names",
        "model_not_found",
        "model",
    )


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"
