"""Measuring beside other servers: what is pooled says where all of it is from, and nothing is left running."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from benchmarks import beside_peers, page
from benchmarks.peers import llama_server, results
from benchmarks.peers.process import ServerProcess, free_port
from rvllm_local.bench import record
from rvllm_local.bench.load import Run
from rvllm_local.bench.metrics import exact
from rvllm_local.bench.outcome import Failure, Outcome
from tests.support.processes import eventually


def answered(failure: Failure | None = None) -> Outcome:
    return Outcome(
        "small",
        0,
        0.0,
        3,
        times=[0.1, 0.2, 0.3],
        ended=0.3,
        finish_reason="length",
        failure=failure,
    )


def write(folder: Path, name: str, outcomes: list[Outcome], **more: Any) -> None:
    row = results.raw(Run(outcomes, 10.0, [(0.0, 1e6)]), **more)
    (folder / f"{name}.json").write_text(
        json.dumps(row | {key: more[key] for key in ("machine", "date") if key in more})
    )


def bench(folder: Path) -> beside_peers.Bench:
    return beside_peers.Bench("small", folder, 4, 1, 1.0, 1.0)


def test_what_failed_is_no_capacity(tmp_path: Path) -> None:
    write(
        tmp_path,
        "capacity-rvllm-1",
        [answered(), answered(), *[answered(Failure.STATUS)] * 8],
    )
    assert bench(tmp_path).capacity() == pytest.approx(0.2), (
        "two answers in ten seconds; eight came fast and were errors"
    )
    write(tmp_path, "capacity-rvllm-1", [answered(Failure.CUT)])
    with pytest.raises(SystemExit, match="capacity"):
        bench(tmp_path).capacity()


def test_pooled_results_name_every_machine_and_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        llama_server, "version", lambda: pytest.fail("llama.cpp was not measured")
    )
    write(
        tmp_path,
        "capacity-rvllm-1",
        [answered()],
        machine="here",
        date="2026-01-02",
        others_cpu=None,
    )
    write(
        tmp_path,
        "capacity-rvllm-2",
        [answered()],
        machine="there",
        date="2026-01-09",
        others_cpu=None,
    )
    results.pool(tmp_path, tmp_path / "pooled")
    found = record.load(tmp_path / "pooled" / "capacity.json")
    assert (found.machine, found.date) == ("here and there", "2026-01-02 to 2026-01-09")
    assert "llama.cpp" not in found.versions
    assert "not known" in page.rounds(found), (
        "a machine that cannot tell is not a quiet one"
    )


def test_a_peer_that_answers_nothing_has_no_ratio(tmp_path: Path) -> None:
    write(tmp_path, "capacity-rvllm-1", [answered()], others_cpu=0.5)
    write(tmp_path, "capacity-mlx-lm-1", [answered(Failure.CUT)])
    results.pool(tmp_path, tmp_path / "pooled")
    text = page.capacity(record.load(tmp_path / "pooled" / "capacity.json"))
    assert "theirs is 0" in text and "50% of the cores" in text
    assert page.ratio(exact(2, ""), exact(4, "")) == "0.50x"


def test_a_folder_of_results_belongs_to_one_model(tmp_path: Path) -> None:
    settings = {"model": "small", "requests": 60}
    for _ in range(2):
        beside_peers.claim(tmp_path, settings)
    for other in ({"model": "large"}, {"requests": 6}):
        with pytest.raises(
            SystemExit, match=r"--(model small|requests 60), not (large|6)"
        ):
            beside_peers.claim(tmp_path, settings | other)


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


WITH_A_CHILD = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open(sys.argv[1], "w").write(str(child.pid))
{then}
"""


def interrupt_once_told(noted: Path) -> None:
    """Ctrl-C for this process, once the server's child has noted its id."""
    eventually(lambda: noted.exists() and bool(noted.read_text()), 60)
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("how", ["interrupted", "ended"])
def test_a_server_that_does_not_come_up_leaves_nothing(
    how: str, tmp_path: Path
) -> None:
    code = WITH_A_CHILD.format(
        then="time.sleep(60)" if how == "interrupted" else "sys.exit(3)"
    )
    noted = tmp_path / "pid"
    if how == "interrupted":
        threading.Thread(target=interrupt_once_told, args=(noted,)).start()
    with pytest.raises(KeyboardInterrupt if how == "interrupted" else SystemExit):
        ServerProcess([sys.executable, "-c", code, str(noted)], free_port(), "small")
    child = int(noted.read_text())
    eventually(lambda: not is_there(child), 60)
