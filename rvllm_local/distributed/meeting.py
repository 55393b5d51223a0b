"""Forms MLX's group of all ranks, in the way that rank 0 has told."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx

from rvllm_local.distributed.frames import Meeting
from rvllm_local.errors import EngineError
from rvllm_local.scratch import temporary_folder

LOOPBACK = "127.0.0.1"
_PORTS = range(20_000, 32_000)


def free_addresses(count: int) -> tuple[str, ...]:
    """So many addresses on loopback that nobody uses now.

    Systems hand out none of these ports by themselves, so that each is still free when
    its rank comes to it.
    """
    choose = random.SystemRandom()
    addresses: list[str] = []
    with contextlib.ExitStack() as kept:
        while len(addresses) < count:
            probe = kept.enter_context(socket.socket())
            port = choose.choice(_PORTS)
            with contextlib.suppress(OSError):
                probe.bind((LOOPBACK, port))
                addresses.append(f"{LOOPBACK}:{port}")
    return tuple(addresses)


def form_group(meeting: Meeting, rank: int) -> mx.distributed.Group:
    """The group of all ranks; returns when those that this one needs are there.

    MLX reads environment and file. Raises `EngineError`, with what MLX says.
    """
    backend = meeting.backend
    count = len(meeting.addresses)
    try:
        with _told(meeting, rank):
            group = mx.distributed.init(strict=True, backend=backend)
    except (RuntimeError, ValueError) as error:
        raise EngineError(
            f"rank {rank} of {count} could not form the {backend} group at "
            f"{meeting.addresses[rank]}: {error}; is the port in use?"
        ) from error
    if (group.rank(), group.size()) != (rank, count):
        raise EngineError(
            f"{backend} takes this to be rank {group.rank()} of {group.size()}, "
            f"and it is rank {rank} of {count}; start the ranks in this order"
        )
    return group


@contextlib.contextmanager
def _told(meeting: Meeting, rank: int) -> Iterator[None]:
    """Tell MLX in the environment, as its own launcher does."""
    with temporary_folder() as folder:
        variables = {"MLX_RANK": str(rank)}
        if meeting.backend == "ring":
            addresses = [[address] for address in meeting.addresses]
            variables["MLX_HOSTFILE"] = _written(Path(folder), addresses)
        elif meeting.backend == "jaccl":
            variables["MLX_JACCL_COORDINATOR"] = meeting.addresses[0]
            variables["MLX_IBV_DEVICES"] = _written(Path(folder), meeting.devices)
        elif meeting.backend == "nccl":
            host, _, port = meeting.addresses[0].rpartition(":")
            variables["NCCL_HOST_IP"] = host
            variables["NCCL_PORT"] = port
            variables["MLX_WORLD_SIZE"] = str(len(meeting.addresses))
        os.environ.update(variables)
        try:
            yield
        finally:
            for name in variables:
                del os.environ[name]


def _written(folder: Path, value: object) -> str:
    path = folder / "ranks.json"
    path.write_text(json.dumps(value))
    return str(path)
