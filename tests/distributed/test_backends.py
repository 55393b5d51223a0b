"""A back end of MLX is chosen from options, hosts and launcher, or refused by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from rvllm_local.distributed.backends import check_backend, choose_backend
from rvllm_local.distributed.gathering import meeting_of
from rvllm_local.errors import ConfigError
from rvllm_local.options import Backend, EngineOptions, RankHosts
from tests.support.tiny import save_tiny

ADDRESSES = (("10.0.0.1", 5000), ("10.0.0.2", 5000))
DEVICES = ((None, "rdma_en2"), ("rdma_en2", None))
MEETING_POINT = (("10.0.0.1", 5000), ("host 1 of 10.0.0.1:5000", 0))


def hosts_with(backend: Backend = "any", **values: object) -> RankHosts:
    given = {"addresses": ADDRESSES, "secret": "", "backend": backend, **values}
    return RankHosts(**given)


@pytest.fixture
def present(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The back ends that MLX says it has."""
    names = {"ring", "jaccl", "nccl", "mpi"}
    monkeypatch.setattr(mx.distributed, "is_available", names.__contains__)
    return names


@pytest.mark.parametrize(
    ("option", "hosts", "expected"),
    [
        ("any", None, "ring"),
        ("any", hosts_with(), "ring"),
        ("any", hosts_with(devices=DEVICES), "jaccl"),
        ("ring", hosts_with(devices=DEVICES), "ring"),
        ("any", hosts_with("ring", devices=DEVICES), "ring"),
        ("any", hosts_with("nccl", addresses=MEETING_POINT), "nccl"),
        ("nccl", hosts_with("ring"), "nccl"),
        ("nccl", None, "nccl"),
        ("mpi", hosts_with(), "mpi"),
    ],
)
def test_the_nearest_word_decides(
    present: set[str], option: Backend, hosts: RankHosts | None, expected: str
) -> None:
    options = EngineOptions(ranks=2, backend=option, hosts=hosts)
    assert choose_backend(options) == expected
    assert meeting_of(options).backend == expected


def test_devices_alone_do_not_ask_for_what_is_not_there(present: set[str]) -> None:
    present.remove("jaccl")
    options = EngineOptions(ranks=2, hosts=hosts_with(devices=DEVICES))
    assert choose_backend(options) == "ring"


@pytest.mark.parametrize(
    ("option", "hosts", "words"),
    [
        ("jaccl", hosts_with(), '"rdma" device to each other one'),
        ("jaccl", None, '"rdma" device to each other one'),
        ("mpi", None, "needs --hosts"),
        ("ring", hosts_with(addresses=MEETING_POINT), "address of every rank"),
    ],
)
def test_what_a_back_end_needs_is_named(
    present: set[str], option: Backend, hosts: RankHosts | None, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        choose_backend(EngineOptions(ranks=2, backend=option, hosts=hosts))


def test_one_that_is_not_there_is_refused_by_name(present: set[str]) -> None:
    present.difference_update({"jaccl", "mpi"})
    with pytest.raises(ConfigError, match=r"no jaccl back end; it has: ring, nccl"):
        check_backend("jaccl")


@pytest.mark.skipif(mx.distributed.is_available("nccl"), reason="it is there")
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--ranks", "2"], "this machine's MLX has no nccl back end; it has: "),
        ([], "--backend is MLX's between ranks: give --ranks N"),
    ],
)
def test_the_command_line_ends_with_one_line(
    tmp_path: Path, flags: list[str], words: str
) -> None:
    model = str(save_tiny("llama", tmp_path / "model", seed=1))
    command = [sys.executable, "-m", "rvllm_local.cli", "serve", model, "--port", "0"]
    done = subprocess.run(
        [*command, "--backend", "nccl", *flags],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode != 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr
