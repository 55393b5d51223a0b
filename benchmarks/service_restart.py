"""How soon a service answers: at its start, and after kill -9 of each of its processes.

python -m benchmarks.service_restart [--model smollm2-135m] [--rounds 3] [--json FILE]

The model is packed first. What runs is the ExecStart line of the unit that
`rvllm service install` writes, started again as its other lines say. Seconds are from
the start (or the kill) to a whole answer of one token; a pause before a start counts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx

from rvllm_local.commands.pack import pack_model
from rvllm_local.commands.service.definition import systemd_unit
from rvllm_local.commands.service.service import service_of
from rvllm_local.models.locate import locate
from tests.support.supervisor import Supervisor, service_processes

MOST_S = 3.0  # from a start to an answer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "model.rvllm"
        pack_model(locate(options.model), bundle)
        seconds = measure(bundle, Path(folder), options.rounds)
    row = {
        name: [round(value, 2) for value in values] for name, values in seconds.items()
    }
    print(json.dumps(row))
    if options.json:
        options.json.write_text(json.dumps(row, indent=1))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    sys.exit(any(value > MOST_S for value in medians.values()))


def measure(bundle: Path, folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds to an answer, by what came before."""
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        unit = systemd_unit(service_of([str(bundle), "--port", str(port)], None))
        began = time.monotonic()
        supervisor = Supervisor(unit.decode(), folder / "log")
        try:
            await_answer(port)
            seconds.setdefault("start", []).append(time.monotonic() - began)
            for kind in ("engine", "prompts", "server"):
                for pid in service_processes(supervisor.process.pid)[kind]:
                    os.kill(pid, signal.SIGKILL)
                began = time.monotonic()
                await_answer(port)
                seconds.setdefault(kind, []).append(time.monotonic() - began)
        finally:
            supervisor.stop()
    return seconds


def await_answer(port: int, within_s: float = 120.0) -> None:
    """Ask again and again until there is an answer."""
    body = {"model": "default", "prompt": "once upon", "max_tokens": 1}
    until = time.monotonic() + within_s
    # One client, without certificates: reading them takes 40 ms of a processor, which
    # at each try would be two thirds of a core of those that the service starts on.
    base = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=base, verify=False, timeout=60) as client:
        while time.monotonic() < until:
            with contextlib.suppress(httpx.TransportError):
                if client.post("/v1/completions", json=body).status_code == 200:
                    return
            time.sleep(0.02)
    raise SystemExit(f"no answer within {within_s:g} s")


if __name__ == "__main__":
    main()
