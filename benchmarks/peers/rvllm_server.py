"""`rvllm serve` in a process of its own, as a user starts it."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import httpx

from benchmarks.peers.process import ServerProcess, free_port


class RvllmServer(ServerProcess):
    """The running server; a context manager. It is up once its model is loaded."""

    name = "rvllm"
    ready = "/health"

    def __init__(
        self, model: str, *options: str, environ: Mapping[str, str] | None = None
    ) -> None:
        port = free_port()
        command = [
            sys.executable,
            "-m",
            "rvllm_local.cli",
            "serve",
            model,
            "--port",
            str(port),
            "--cache",
            "memory",
        ]
        super().__init__([*command, *options], port, "default", environ)

    def restarts(self) -> int:
        """How often its engine had to be started again."""
        engines = httpx.get(
            f"http://127.0.0.1:{self.port}/health", timeout=10.0, trust_env=False
        ).json()["engines"]
        return sum(row.get("restarts", 0) for row in engines)
