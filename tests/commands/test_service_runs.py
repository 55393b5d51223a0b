"""The unit that is written runs: the server answers, and again after each kill -9."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from rvllm_local.commands.pack import pack_model
from rvllm_local.commands.service.definition import Service, systemd_unit
from rvllm_local.commands.service.service import service_of
from rvllm_local.models.locate import locate
from tests.support.ports import spare_ports
from tests.support.processes import eventually, is_running
from tests.support.served import save_thinking
from tests.support.supervisor import (
    Supervisor,
    service_processes,
)

LONG_S = 120.0


@dataclass(frozen=True)
class Supervised:
    """A server that a supervisor keeps running."""

    supervisor: Supervisor
    port: int

    def answers(self) -> bool:
        """Whether a whole answer comes now."""
        body = {"prompt": "x", "max_tokens": 1, "model": "default"}
        try:
            url = f"http://127.0.0.1:{self.port}/v1/completions"
            return httpx.post(url, json=body, timeout=60).status_code == 200
        except httpx.TransportError:
            return False

    def kill(self, kind: str) -> list[int]:
        """Kill -9 of the processes that do this."""
        pids = service_processes(self.supervisor.process.pid)[kind]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # it had no more work
                os.kill(pid, signal.SIGKILL)
        return pids


@pytest.fixture(scope="module")
def supervised(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    folder = tmp_path_factory.mktemp("service")
    bundle = folder / "a model.rvllm"
    pack_model(locate(str(save_thinking(folder / "tiny"))), bundle)
    (port,) = spare_ports(1)
    words = [str(bundle), "--port", str(port), "--keep-responses", "0"]
    unit = systemd_unit(service_of(words, None)).decode()
    made = Supervised(Supervisor(unit, folder / "log"), port)
    try:
        eventually(made.answers, LONG_S)
        yield made
    finally:
        assert made.supervisor.stop() == 0


def test_it_answers_again_after_kill_nine_of_each_process(
    supervised: Supervised,
) -> None:
    server = supervised.supervisor.process.pid
    for kind in ("engine", "prompts"):
        killed = supervised.kill(kind)
        assert killed
        eventually(supervised.answers, LONG_S)
        assert supervised.supervisor.process.pid == server, "the server went on"
        eventually(lambda pids=killed: not any(map(is_running, pids)), LONG_S)
    below = service_processes(server)
    supervised.kill("server")
    eventually(supervised.answers, LONG_S)
    assert supervised.supervisor.process.pid != server
    assert supervised.supervisor.pauses == [0.2]
    left = [pid for pids in below.values() for pid in pids]
    eventually(lambda: not any(is_running(pid) for pid in left), LONG_S)


def test_pauses_grow_and_a_refused_setting_is_not_tried_again(tmp_path: Path) -> None:
    count = tmp_path / "count"
    program = (
        "import pathlib, sys; p = pathlib.Path(sys.argv[1]); "
        "n = len(p.read_text()) if p.exists() else 0; "
        "p.write_text('x' * (n + 1)); sys.exit(2 if n == 3 else 1)"
    )
    service = Service([sys.executable, "-c", program, str(count)], 1, Path("/dev/null"))
    unit = systemd_unit(service).decode()
    # As it is, but quicker.
    quick = unit.replace("RestartSec=0.2", "RestartSec=0.01")
    quick = quick.replace("RestartMaxDelaySec=60", "RestartMaxDelaySec=0.64")
    supervisor = Supervisor(quick, tmp_path / "log")
    eventually(lambda: not supervisor.is_keeping, LONG_S)
    assert len(count.read_text()) == 4
    assert supervisor.pauses == pytest.approx([0.01, 0.02, 0.04])
