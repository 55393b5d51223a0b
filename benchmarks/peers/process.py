"""A server in a process of its own: started on a free port, waited for, ended. What all peers share."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

import httpx

START_S = 180.0
_GRACE = 20  # tenths of a second for what a server leaves behind, which may have a cache to write


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerProcess:
    """A running server, as a context manager. `url` is the base address of its API, with /v1.

    `ready` is the path below the address that answers 200 once the model can be asked.
    """

    name = "server"
    ready = "/v1/models"

    def __init__(
        self,
        command: Sequence[str],
        port: int,
        model: str,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.port, self.model = port, model
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (it lives as long as the process)
        self.process = subprocess.Popen(
            list(command), stdout=self._log, stderr=self._log, stdin=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, **(environ or {})},
        )  # fmt: skip
        try:
            self._wait()
        except (
            BaseException
        ):  # Ctrl-C, too: the process has a session of its own, which hears of none
            self.close()
            raise

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def pid(self) -> int:
        return self.process.pid

    def _wait(self) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise SystemExit(
                    f"{self.name} ended with {self.process.returncode}:\n{self.said()}"
                )
            try:
                if (
                    httpx.get(
                        f"http://127.0.0.1:{self.port}{self.ready}",
                        timeout=5.0,
                        trust_env=False,
                    ).status_code
                    == 200
                ):
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        raise SystemExit(
            f"{self.name} did not come up within {START_S:g} s:\n{self.said()}"
        )

    def said(self) -> str:
        """The end of what the process has printed."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-2000:]

    def close(self) -> None:
        """End the process and all that it started, which may still run though it ended by itself."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(15)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            for _ in range(_GRACE):
                os.killpg(self.process.pid, 0)  # raises once nobody is left
                time.sleep(0.1)
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
