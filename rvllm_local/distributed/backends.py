"""Which of MLX's back ends carries what the ranks exchange, and whether it is there."""

from __future__ import annotations

import mlx.core as mx

from rvllm_local.errors import ConfigError
from rvllm_local.options import Backend, EngineOptions

_NAMES: tuple[Backend, ...] = ("ring", "jaccl", "nccl", "mpi")


def choose_backend(options: EngineOptions) -> Backend:
    """The back end that an option, the hosts file or the launcher names; never "any".

    Raises `ConfigError` for one that these hosts cannot use, or that is not there.
    """
    backend = options.backend
    hosts = options.hosts
    if backend == "any" and hosts is not None:
        backend = hosts.backend
    if backend == "any":
        backend = "ring"
        if hosts is not None and hosts.devices and is_there("jaccl"):
            backend = "jaccl"
    _check_needs(backend, options)
    check_backend(backend)
    return backend


def is_there(backend: Backend) -> bool:
    """True if this machine's MLX can form a group by it."""
    return bool(mx.distributed.is_available(backend))


def check_backend(backend: Backend) -> None:
    """Raise `ConfigError` for a back end that this machine's MLX does not have."""
    if is_there(backend):
        return
    present = [name for name in _NAMES if is_there(name)]
    raise ConfigError(
        f"this machine's MLX has no {backend} back end; "
        f"it has: {', '.join(present) or 'none'}"
    )


def _check_needs(backend: Backend, options: EngineOptions) -> None:
    hosts = options.hosts
    if backend == "jaccl" and (hosts is None or not hosts.devices):
        raise ConfigError(
            "the jaccl back end needs a hosts file in which every host has an "
            '"rdma" device to each other one, and null for itself; '
            "mlx.distributed_config writes it"
        )
    if backend == "mpi" and hosts is None:
        raise ConfigError(
            "the mpi back end needs --hosts: mpirun has to start every rank"
        )
    addresses = () if hosts is None else hosts.addresses
    if backend == "ring" and not all(port for _, port in addresses):
        raise ConfigError(
            "the ring back end needs an address of every rank, and the launcher "
            "has told that of rank 0 alone; run mlx.launch --backend ring"
        )
