"""Which ranks of this user run on this machine: none is started twice."""

from __future__ import annotations

from pathlib import Path

import platformdirs

from rvllm_local.errors import ConfigError
from rvllm_local.options import RankHosts
from rvllm_local.process_notes import Note, put_note, read_notes


def claim_rank(hosts: RankHosts, rank: int) -> Note | None:
    """Say that this process serves a rank, until the note is closed.

    None where no note can be written. Raises `ConfigError` if another one serves it.
    """
    host, port = hosts.addresses[rank]
    address = f"{host}:{port}"
    for row in read_notes(_folder()):
        if row.get("address") == address:
            raise ConfigError(
                f"rank {rank} at {address} runs here already, as process "
                f"{row.get('pid')}; end that one first"
            )
    return put_note(_folder(), {"address": address, "rank": rank})


def _folder() -> Path:
    return Path(platformdirs.user_data_dir("rvllm", appauthor=False), "ranks")
