"""Forms MLX's ring of ranks, on addresses that rank 0 has told."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx

from rvllm_local.errors import ConfigError, EngineError
from rvllm_local.scratch import temporary_folder

LOOPBACK = "127.0.0.1"
_PORTS = range(20_000, 32_000)


def check_ring() -> None:
    """Raise `ConfigError` where MLX cannot form a ring."""
    if not mx.distributed.is_available("ring"):
        raise ConfigError(
            "ranks cannot be more than 1 here: this MLX has no ring back end"
        )


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


def form_ring(addresses: Sequence[str], rank: int) -> mx.distributed.Group:
    """The group of all ranks; returns when this one's neighbours are there.

    MLX reads environment and file. Raises `EngineError`, with what MLX says.
    """
    with temporary_folder() as folder:
        path = Path(folder) / "ring.json"
        path.write_text(json.dumps([[address] for address in addresses]))
        os.environ["MLX_HOSTFILE"] = str(path)
        os.environ["MLX_RANK"] = str(rank)
        try:
            return mx.distributed.init(strict=True, backend="ring")
        except (RuntimeError, ValueError) as error:
            raise EngineError(
                f"rank {rank} of {len(addresses)} could not form the ring at "
                f"{addresses[rank]}: {error}; is the port in use?"
            ) from error
        finally:
            del os.environ["MLX_HOSTFILE"], os.environ["MLX_RANK"]
