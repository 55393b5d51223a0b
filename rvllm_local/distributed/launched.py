"""Reads what MLX's own launcher tells a process: its rank, and where the others are."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from rvllm_local.distributed.hosts import read_hosts
from rvllm_local.errors import ConfigError
from rvllm_local.options import Backend, RankHosts, RdmaDevices

SECRET_VARIABLE = "RVLLM_RANKS_SECRET"
_VARIABLES = (
    "MLX_RANK",
    "MLX_HOSTFILE",
    "MLX_JACCL_COORDINATOR",
    "MLX_IBV_DEVICES",
    "MLX_WORLD_SIZE",
    "NCCL_HOST_IP",
    "NCCL_PORT",
)
_MOST_RANKS = 64


@dataclass(frozen=True, slots=True)
class LaunchedRank:
    """This process's number in a job, and the hosts of all."""

    rank: int
    hosts: RankHosts


def take_launch(environment: MutableMapping[str, str]) -> LaunchedRank | None:
    """What `mlx.launch` has told; None where it has started nothing.

    Its variables are taken out of the environment: MLX would form a group by them
    whenever it is asked for one. Raises `ConfigError` for what cannot be.
    """
    if "MLX_RANK" not in environment:
        environment.pop("MLX_HOSTFILE", None)
        return None
    told = {}
    for name in _VARIABLES:
        told[name] = environment.pop(name, "")
    secret = environment.get(SECRET_VARIABLE)
    if secret is None:
        raise ConfigError(
            f"{SECRET_VARIABLE} is not set: it names the file of the ranks' secret on "
            f"each host; run mlx.launch --env {SECRET_VARIABLE}=/path/to/hosts.secret"
        )
    hosts = _hosts(told)
    number = told["MLX_RANK"]
    count = len(hosts.addresses)
    if not number.isdecimal() or int(number) >= count:
        raise ConfigError(
            f"MLX_RANK must be from 0 to {count - 1}, not {number!r:.40}: "
            f"the launcher has told of {count} hosts"
        )
    return LaunchedRank(int(number), msgspec.structs.replace(hosts, secret=secret))


def _hosts(told: dict[str, str]) -> RankHosts:
    """The hosts, as the launcher tells them for each of MLX's back ends."""
    if told["MLX_HOSTFILE"]:
        hosts = read_hosts(Path(told["MLX_HOSTFILE"]))
        return msgspec.structs.replace(hosts, backend="ring")
    if told["MLX_JACCL_COORDINATOR"]:
        devices = _read_devices(Path(told["MLX_IBV_DEVICES"]))
        return _met_at(told["MLX_JACCL_COORDINATOR"], len(devices), "jaccl", devices)
    if told["NCCL_HOST_IP"]:
        count = told["MLX_WORLD_SIZE"]
        if not count.isdecimal() or not 2 <= int(count) <= _MOST_RANKS:
            raise ConfigError(
                f"MLX_WORLD_SIZE must be from 2 to {_MOST_RANKS}, not {count!r:.40}"
            )
        address = f"{told['NCCL_HOST_IP']}:{told['NCCL_PORT']}"
        return _met_at(address, int(count), "nccl")
    raise ConfigError(
        "MLX_RANK is set, and nothing says where the other ranks are; run mlx.launch "
        "with --backend ring, jaccl or nccl, or unset MLX_RANK"
    )


def _met_at(
    address: str, count: int, backend: Backend, devices: RdmaDevices = ()
) -> RankHosts:
    """Hosts of which the launcher has told rank 0's address alone."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 1 < int(port) < 65536:
        raise ConfigError(f"the launcher has told {address!r:.60}, which is no address")
    addresses = [(host, int(port))]
    for rank in range(1, count):
        addresses.append((f"host {rank} of {address}", 0))
    return RankHosts(tuple(addresses), "", backend, devices)


def _read_devices(path: Path) -> RdmaDevices:
    try:
        return msgspec.json.decode(path.read_bytes(), type=RdmaDevices)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"MLX_IBV_DEVICES names {str(path)!r:.80}, which is no list of each rank's "
            f"devices: {error}; run mlx.launch with mlx.distributed_config's hosts file"
        ) from error
