"""Reads the file of hosts, in the form that MLX's own launcher takes, and the secret.

It is a list with an entry for each rank, rank 0 first: {"ssh": ..., "ips": [...]}, or
the addresses alone, as the launcher hands them on. An address may have a port. Only the
first address of an entry is used. `rdma` names its devices to each rank. Around the list
there may be an object that names the back end, too.
"""

from __future__ import annotations

import ipaddress
import json
import stat
from pathlib import Path
from typing import Any, get_args

import msgspec

from rvllm_local.errors import ConfigError
from rvllm_local.options import Backend, RankHosts, RdmaDevices

_FIRST_PORT = 32323  # MLX's launcher begins there, too
_LEAST_SECRET = 16  # bytes


def read_hosts(path: Path) -> RankHosts:
    """The hosts of a file. Raises `ConfigError` that says what is wrong with it."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--hosts {path} cannot be read: {error}") from error
    backend: Backend = "any"
    if isinstance(entries, dict):
        backend = _backend(path, entries.get("backend") or "any")
        entries = entries.get("hosts")
    if not isinstance(entries, list) or len(entries) < 2:
        raise ConfigError(
            f"--hosts {path} must be a list of two hosts or more, rank 0 first, like "
            '[{"ssh": "name", "ips": ["10.0.0.1"]}, ...]'
        )
    addresses: list[tuple[str, int]] = []
    for rank, entry in enumerate(entries):
        address = _address(path, rank, entry)
        if address in addresses:
            host, port = address
            raise ConfigError(
                f"--hosts {path} has {host}:{port} twice, for the ranks "
                f"{addresses.index(address)} and {rank}; give each its own"
            )
        addresses.append(address)
    secret = str(path.absolute().with_suffix(".secret"))
    return RankHosts(tuple(addresses), secret, backend, _devices(entries))


def _backend(path: Path, name: Any) -> Backend:
    try:
        backend: Backend = msgspec.convert(name, Backend)
    except msgspec.ValidationError as error:
        names = ", ".join(get_args(Backend))
        raise ConfigError(
            f"--hosts {path} names the back end {name!r:.60}; it can be: {names}"
        ) from error
    return backend


def _devices(entries: list[Any]) -> RdmaDevices:
    """Each rank's RDMA devices; none at all if a way between two ranks lacks its own."""
    try:
        rows = [entry["rdma"] for entry in entries]
        devices = msgspec.convert(rows, RdmaDevices)
    except (KeyError, TypeError, msgspec.ValidationError):
        return ()
    for rank, row in enumerate(devices):
        missing = [other for other, device in enumerate(row) if not device]
        if len(row) != len(devices) or missing != [rank]:
            return ()
    return devices


def _address(path: Path, rank: int, entry: Any) -> tuple[str, int]:
    ips = entry.get("ips") if isinstance(entry, dict) else entry
    if not isinstance(ips, list) or not ips or not isinstance(ips[0], str):
        raise ConfigError(f'--hosts {path}: rank {rank} needs "ips": ["10.0.0.1"]')
    host, _, port = ips[0].partition(":")
    try:
        address = str(ipaddress.IPv4Address(host))
        number = int(port) if port else _FIRST_PORT + rank
        if not 1 < number < 65536:
            raise ValueError(f"port {number} cannot be")
    except ValueError as error:
        raise ConfigError(
            f"--hosts {path}: rank {rank} has {ips[0]!r:.60}, which is no IPv4 "
            f"address, with a port or without one: {error}"
        ) from error
    return address, number


def secret_of(hosts: RankHosts) -> bytes:
    """The job's secret. Raises `ConfigError` for a file that others can read."""
    path = Path(hosts.secret)
    advice = (
        f"run: (umask 077; openssl rand -hex 32 > {path}), and copy it to all hosts"
    )
    try:
        mode = path.stat().st_mode
        secret = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(
            f"the ranks' secret {path} cannot be read: {error.strerror}; {advice}"
        ) from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(
            f"the ranks' secret {path} can be read by others; run: chmod 600 {path}"
        )
    if len(secret) < _LEAST_SECRET:
        raise ConfigError(
            f"the ranks' secret {path} is shorter than {_LEAST_SECRET} bytes; {advice}"
        )
    return secret


def control_address(hosts: RankHosts) -> tuple[str, int]:
    """Where rank 0 listens for the others: the port below its port of the ring."""
    host, port = hosts.addresses[0]
    return host, port - 1


def rank_addresses(hosts: RankHosts) -> tuple[str, ...]:
    """Where each rank listens for others."""
    return tuple(f"{host}:{port}" for host, port in hosts.addresses)
