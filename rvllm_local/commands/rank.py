"""`rvllm rank`: this machine's part of a model that another machine serves."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

from rvllm_local.config import Config, load_config
from rvllm_local.distributed.follower import REFUSED
from rvllm_local.distributed.hosts import control_address, read_hosts, secret_of
from rvllm_local.distributed.invitation import Invitation, start_rank
from rvllm_local.distributed.running_ranks import claim_rank
from rvllm_local.errors import ConfigError
from rvllm_local.options import RankHosts

_PAUSE_S = 1.0  # between two jobs
_INTERRUPTED = 130


def rank(arguments: argparse.Namespace) -> int:
    """Serve job after job, until a signal comes or rank 0 refuses this machine."""
    if arguments.hosts is None or arguments.rank is None:
        raise ConfigError("a rank needs --hosts FILE and --rank N")
    config = load_config({"model": arguments.model})
    hosts = read_hosts(Path(arguments.hosts))
    ranks = len(hosts.addresses)
    if not 0 < arguments.rank < ranks:
        raise ConfigError(
            f"--rank must be from 1 to {ranks - 1}, not {arguments.rank}: "
            "rank 0 is where `rvllm serve --hosts` runs"
        )
    return serve_rank(config, hosts, arguments.rank)


def serve_rank(config: Config, hosts: RankHosts, number: int) -> int:
    """Serve job after job as the rank of this number. Returns the exit status.

    Raises `ConfigError` if another process of this machine does so already.
    """
    claim = claim_rank(hosts, number)
    address, port = control_address(hosts)
    invitation = Invitation(
        address,
        port,
        number,
        len(hosts.addresses),
        secret_of(hosts),
        config.model,
        os.getpid(),
        str(config.cache_dir),
    )
    signal.signal(signal.SIGTERM, _end)
    try:
        while _serve_job(invitation) != REFUSED:
            time.sleep(_PAUSE_S)
    finally:
        if claim is not None:
            claim.close()
    return 1


def _serve_job(invitation: Invitation) -> int:
    """The exit status of one job's process, which does not outlive this one."""
    process: subprocess.Popen[bytes] = start_rank(invitation)
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _end(_number: int, _frame: object) -> NoReturn:
    sys.exit(_INTERRUPTED)
