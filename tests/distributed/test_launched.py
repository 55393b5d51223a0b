"""A process that MLX's launcher has started knows its rank, its hosts and the secret."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rvllm_local.distributed.hosts import control_address
from rvllm_local.distributed.launched import SECRET_VARIABLE, LaunchedRank, take_launch
from rvllm_local.errors import ConfigError
from rvllm_local.options import RankHosts


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """As `mlx.launch -n 2` sets it, with the secret beside."""
    path = tmp_path / "hostfile"
    path.write_text(json.dumps([["127.0.0.1:32323"], ["127.0.0.1:32324"]]))
    return {
        "MLX_RANK": "1",
        "MLX_HOSTFILE": str(path),
        SECRET_VARIABLE: "/keys/hosts.secret",
        "HOME": "/home/somebody",
    }


def test_the_launcher_s_word_is_taken_out_of_the_environment(
    environment: dict[str, str],
) -> None:
    addresses = (("127.0.0.1", 32323), ("127.0.0.1", 32324))
    hosts = RankHosts(addresses, "/keys/hosts.secret", "ring")
    assert take_launch(environment) == LaunchedRank(1, hosts)
    assert environment.keys() == {SECRET_VARIABLE, "HOME"}


@pytest.fixture
def met() -> dict[str, str]:
    """What the launcher sets for back ends that meet at rank 0."""
    return {"MLX_RANK": "1", SECRET_VARIABLE: "/keys/hosts.secret"}


def test_nccl_is_known_by_rank_0_s_address_alone(met: dict[str, str]) -> None:
    met |= {"NCCL_HOST_IP": "10.0.0.1", "NCCL_PORT": "12345", "MLX_WORLD_SIZE": "3"}
    launched = take_launch(met)
    assert launched is not None
    hosts = launched.hosts
    assert (hosts.backend, len(hosts.addresses)) == ("nccl", 3)
    assert control_address(hosts) == ("10.0.0.1", 12344)
    assert len(set(hosts.addresses)) == 3
    assert met.keys() == {SECRET_VARIABLE}


def test_jaccl_s_devices_are_handed_on(met: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "devices"
    path.write_text(json.dumps([[None, "rdma_en2"], [["rdma_en2", "rdma_en3"], None]]))
    met |= {
        "MLX_JACCL_COORDINATOR": "10.0.0.1:32323",
        "MLX_IBV_DEVICES": str(path),
    }
    launched = take_launch(met)
    assert launched is not None
    hosts = launched.hosts
    assert (hosts.backend, control_address(hosts)) == ("jaccl", ("10.0.0.1", 32322))
    assert hosts.devices == ((None, "rdma_en2"), (("rdma_en2", "rdma_en3"), None))
    assert met.keys() == {SECRET_VARIABLE}


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"NCCL_HOST_IP": "h", "NCCL_PORT": "12345"}, "MLX_WORLD_SIZE must be from 2"),
        (
            {"NCCL_HOST_IP": "h", "NCCL_PORT": "", "MLX_WORLD_SIZE": "2"},
            "no address",
        ),
        (
            {"MLX_JACCL_COORDINATOR": "h:5000", "MLX_IBV_DEVICES": "/nowhere/at/all"},
            "MLX_IBV_DEVICES names '/nowhere/at/all'",
        ),
    ],
)
def test_a_meeting_that_cannot_be_is_refused(
    met: dict[str, str], told: dict[str, str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        take_launch(met | told)


def test_without_a_launcher_there_is_nothing() -> None:
    assert take_launch({"HOME": "/home/somebody"}) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"MLX_RANK": "2"}, "from 0 to 1, not '2'"),
        ({"MLX_RANK": "-1"}, "from 0 to 1, not '-1'"),
        ({"MLX_RANK": "one"}, "from 0 to 1, not 'one'"),
        ({"MLX_HOSTFILE": None}, "--backend ring"),
        ({"MLX_HOSTFILE": "/nowhere/at/all"}, "cannot be read"),
        ({SECRET_VARIABLE: None}, f"--env {SECRET_VARIABLE}="),
    ],
)
def test_a_launch_that_cannot_be_is_refused(
    environment: dict[str, str], changes: dict[str, str | None], words: str
) -> None:
    for name, value in changes.items():
        del environment[name]
        if value is not None:
            environment[name] = value
    with pytest.raises(ConfigError, match=words):
        take_launch(environment)
