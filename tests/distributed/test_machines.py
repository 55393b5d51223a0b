"""Machines of a hosts file serve a model together: here two addresses of this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rvllm_local import LLM, SamplingParams
from rvllm_local.clients.process.client import ProcessClient
from rvllm_local.distributed.hosts import read_hosts
from rvllm_local.options import EngineOptions
from tests.support.ranks import free_hosts, needs_ring
from tests.support.tiny import save_tiny

pytestmark = needs_ring
RVLLM = [sys.executable, "-m", "rvllm_local.cli"]
# On a busy machine a rank needs longer to come than people want to wait.
PATIENT_DOCTOR = """
import sys
from rvllm_local import cli
from rvllm_local.commands import doctor_hosts
doctor_hosts._PATIENCE_S = 180.0
sys.exit(cli.main(["doctor", "--json", "--hosts", sys.argv[1]]))
"""
PROMPT = [5, 6, 7]
GREEDY = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny("llama", tmp_path_factory.mktemp("llama"), seed=1))


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of two hosts, and the secret beside it."""
    path = tmp_path_factory.mktemp("hosts") / "hosts.json"
    path.write_text(json.dumps([{"ips": [address]} for address in free_hosts(2)]))
    secret = path.with_suffix(".secret")
    secret.write_text("0123456789abcdef")
    secret.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def other_machine(model: str, hosts: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`rvllm rank`, which serves one job after the other."""
    command = [*RVLLM, "rank", model, "--hosts", str(hosts), "--rank", "1"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    yield process
    process.terminate()
    process.wait(60)


def doctor(hosts: Path, model: str) -> list[dict[str, str]]:
    done = subprocess.run(
        [sys.executable, "-c", PATIENT_DOCTOR, str(hosts)],
        capture_output=True,
        text=True,
        env={**os.environ, "RVLLM_MODEL": model},
        timeout=280,
    )
    findings: list[dict[str, str]] = json.loads(done.stdout)["findings"]
    return findings


def test_the_doctor_and_then_a_job_find_the_other_machine(
    model: str, hosts: Path, other_machine: subprocess.Popen[bytes]
) -> None:
    findings = doctor(hosts, model)
    checks = [(finding["check"], finding["state"]) for finding in findings]
    assert checks[:2] == [("hosts", "ok"), ("model", "ok")], findings
    assert checks[2][0] == "sums" and "MB/s" in findings[2]["detail"]
    options = EngineOptions(ranks=2, hosts=read_hosts(hosts), kv_memory=2**24)
    client = ProcessClient(model, options)
    try:
        tokens = [
            token
            for event in client.submit(PROMPT, GREEDY)
            for token in event.token_ids
        ]
    finally:
        client.close()
    with LLM(model, kv_memory="16MB") as alone:
        (expected,) = alone.generate(PROMPT, GREEDY)
    assert tokens == list(expected.token_ids)
    assert other_machine.poll() is None


def test_another_model_is_told(
    hosts: Path,
    other_machine: subprocess.Popen[bytes],
    tmp_path: Path,
) -> None:
    other = str(save_tiny("llama", tmp_path / "other", seed=2))
    findings = doctor(hosts, other)
    (verdict,) = [finding for finding in findings if finding["check"] == "model"]
    assert verdict["state"] == "failed"
    assert "rank 1 has another model" in verdict["detail"]
    assert other_machine.poll() is None


@pytest.mark.parametrize(
    ("number", "words"),
    [(2, "--rank must be from 1 to 1, not 2"), (1, "runs here already, as process")],
)
def test_a_rank_that_cannot_be_is_refused(
    hosts: Path,
    model: str,
    other_machine: subprocess.Popen[bytes],
    number: int,
    words: str,
) -> None:
    assert other_machine.poll() is None
    done = subprocess.run(
        [*RVLLM, "rank", model, "--hosts", str(hosts), "--rank", str(number)],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode != 0
    assert words in done.stderr
