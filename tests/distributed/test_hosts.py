"""The file of hosts and the secret beside it are read, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rvllm_local.distributed.hosts import (
    control_address,
    rank_addresses,
    read_hosts,
    secret_of,
)
from rvllm_local.errors import ConfigError
from rvllm_local.options import EngineOptions, RankHosts

ENTRIES = [
    {"ssh": "first", "ips": ["10.0.0.1"]},
    {"ssh": "second", "ips": ["10.0.0.2:5000"]},
]


def written(folder: Path, value: object) -> Path:
    path = folder / "hosts.json"
    path.write_text(json.dumps(value))
    return path


def test_mlx_s_own_file_is_read(tmp_path: Path) -> None:
    hosts = read_hosts(written(tmp_path, ENTRIES))
    assert hosts.addresses == (("10.0.0.1", 32323), ("10.0.0.2", 5000))
    assert hosts.secret == str(tmp_path / "hosts.secret")
    assert control_address(hosts) == ("10.0.0.1", 32322)
    assert rank_addresses(hosts) == ("10.0.0.1:32323", "10.0.0.2:5000")
    assert read_hosts(written(tmp_path, {"hosts": ENTRIES})) == hosts


def with_devices(*rows: object) -> list[dict[str, object]]:
    return [{**entry, "rdma": row} for entry, row in zip(ENTRIES, rows, strict=True)]


def test_devices_and_a_back_end_are_read(tmp_path: Path) -> None:
    """Devices are of use only if there is one for each way."""
    entries = with_devices([None, "rdma_en2"], [["rdma_en2", "rdma_en3"], None])
    hosts = read_hosts(written(tmp_path, {"backend": "jaccl", "hosts": entries}))
    assert hosts.backend == "jaccl"
    assert hosts.devices == ((None, "rdma_en2"), (("rdma_en2", "rdma_en3"), None))
    for rows in (([], []), ([None, None], [None, None]), ([None, "a"], ["a", "a"])):
        assert read_hosts(written(tmp_path, with_devices(*rows))).devices == ()
    assert read_hosts(written(tmp_path, {"hosts": ENTRIES})).backend == "any"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"backend": "smoke", "hosts": ENTRIES}, "'smoke'; it can be: any, ring"),
        ([], "two hosts"),
        ([ENTRIES[0]], "two hosts"),
        ("x", "two hosts"),
        ([ENTRIES[0], {}], "rank 1 needs"),
        ([ENTRIES[0], {"ips": []}], "rank 1 needs"),
        ([ENTRIES[0], {"ips": ["second"]}], "no IPv4"),
        ([ENTRIES[0], {"ips": ["10.0.0.2:99999"]}], "99999"),
        ([ENTRIES[1], ENTRIES[1]], "10.0.0.2:5000 twice, for the ranks 0 and 1"),
    ],
)
def test_a_file_that_cannot_be_is_refused(
    tmp_path: Path, value: object, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        read_hosts(written(tmp_path, value))


def test_a_secret_is_private_and_long(tmp_path: Path) -> None:
    path = tmp_path / "hosts.secret"
    hosts = RankHosts((("10.0.0.1", 5000), ("10.0.0.2", 5000)), str(path))
    with pytest.raises(ConfigError, match="cannot be read"):
        secret_of(hosts)
    path.write_text("0123456789abcdef\n")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        secret_of(hosts)
    path.chmod(0o600)
    assert secret_of(hosts) == b"0123456789abcdef"
    path.write_text("short\n")
    with pytest.raises(ConfigError, match="shorter"):
        secret_of(hosts)


def test_ranks_of_one_machine_share_its_memory() -> None:
    here = RankHosts((("10.0.0.1", 5000), ("10.0.0.1", 5001)), "")
    apart = RankHosts((("10.0.0.1", 5000), ("10.0.0.2", 5000)), "")
    assert EngineOptions(ranks=4).ranks_here == 4
    assert EngineOptions(ranks=2, hosts=here).ranks_here == 2
    assert EngineOptions(ranks=2, hosts=apart).ranks_here == 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"hosts": RankHosts((("10.0.0.1", 5000),) * 3, "")}, "hosts are 3"),
        ({"hosts": RankHosts((("10.0.0.1", 5000),), "")}, "hosts are 1"),
    ],
)
def test_what_several_ranks_cannot_serve_is_refused(
    values: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        EngineOptions(ranks=2, **values)


def test_what_several_ranks_share_is_taken() -> None:
    options = EngineOptions(ranks=2, cache="disk", adapters=(("a", "b"),))
    assert options.cache == "disk"
