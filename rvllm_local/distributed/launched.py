"""Reads what MLX's own launcher tells a process: its rank, and where the others are."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from rvllm_local.distributed.hosts import read_hosts
from rvllm_local.errors import ConfigError
from rvllm_local.options import RankHosts

SECRET_VARIABLE = "RVLLM_RANKS_SECRET"


@dataclass(frozen=True, slots=True)
class LaunchedRank:
    """This process's number in a job, and the hosts of all."""

    rank: int
    hosts: RankHosts


def take_launch(environment: MutableMapping[str, str]) -> LaunchedRank | None:
    """What `mlx.launch` has told; None where it has started nothing.

    Its variables are taken out of the environment: MLX would form a ring by them
    whenever it is asked for a group. Raises `ConfigError` for what cannot be.
    """
    number = environment.pop("MLX_RANK", None)
    path = environment.pop("MLX_HOSTFILE", None)
    if number is None:
        return None
    if path is None:
        raise ConfigError(
            "MLX_RANK is set and MLX_HOSTFILE is not: ranks reach each other by MLX's "
            "ring alone; run mlx.launch with --backend ring, or unset MLX_RANK"
        )
    secret = environment.get(SECRET_VARIABLE)
    if secret is None:
        raise ConfigError(
            f"{SECRET_VARIABLE} is not set: it names the file of the ranks' secret on "
            f"each host; run mlx.launch --env {SECRET_VARIABLE}=/path/to/hosts.secret"
        )
    hosts = read_hosts(Path(path))
    count = len(hosts.addresses)
    if not number.isdecimal() or int(number) >= count:
        raise ConfigError(
            f"MLX_RANK must be from 0 to {count - 1}, not {number!r:.40}: "
            f"MLX_HOSTFILE has {count} hosts"
        )
    return LaunchedRank(int(number), msgspec.structs.replace(hosts, secret=secret))
