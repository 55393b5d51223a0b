"""A process that MLX's launcher has started knows its rank, its hosts and the secret."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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
    hosts = RankHosts(addresses, "/keys/hosts.secret")
    assert take_launch(environment) == LaunchedRank(1, hosts)
    assert environment.keys() == {SECRET_VARIABLE, "HOME"}


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
