"""What a rank's process has to know before it can reach rank 0.

It comes over standard input: neither arguments nor environment tell others the secret.
"""

from __future__ import annotations

import subprocess
import sys

import msgspec

_COMMAND = (sys.executable, "-P", "-m", "rvllm_local.distributed.follower")


class Invitation(msgspec.Struct, frozen=True):
    """Where rank 0 is, which rank this is, and its model here.

    `parent` is the process with which it ends; `cache_dir` is this machine's.
    """

    host: str
    port: int
    rank: int
    ranks: int
    secret: bytes
    model: str
    parent: int
    cache_dir: str | None


def start_rank(invitation: Invitation) -> subprocess.Popen[bytes]:
    """A process of this machine for one rank. It says on stderr why it ended."""
    process = subprocess.Popen(
        _COMMAND, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    assert process.stdin is not None
    with process.stdin as stream:
        stream.write(msgspec.msgpack.encode(invitation))
    return process


def read_invitation() -> Invitation:
    """What this process was told at its start."""
    return msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Invitation)
