"""Jobs of two ranks on loopback, and what a test needs to look at their processes."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest

from rvllm_local import LLM
from rvllm_local.clients.process.client import ProcessClient
from rvllm_local.conversation.model import ConversationModel, detect_style
from rvllm_local.distributed.ring import free_addresses
from rvllm_local.models.locate import locate
from rvllm_local.options import EngineOptions
from rvllm_local.text.tokenizer_files import read_tokenizer

needs_ring = pytest.mark.skipif(
    not mx.distributed.is_available("ring"), reason="this MLX has no ring back end"
)


@contextlib.contextmanager
def served_by_ranks(folder: Path, **options: object) -> Iterator[LLM]:
    """An `LLM` whose engine is two processes of this machine."""
    client = ProcessClient(str(folder), EngineOptions(ranks=2, **options))
    files = locate(str(folder))
    tokenizer = read_tokenizer(files)
    style = detect_style(files, tokenizer)
    model = ConversationModel(files.name, tokenizer, style, client.limits)
    with LLM.over(client, model) as llm:
        yield llm


def free_hosts(count: int) -> list[str]:
    """Addresses of this machine; below the first one's port there is a free one, too."""
    while True:
        with socket.socket() as control, socket.socket() as first:
            control.bind(("127.0.0.1", 0))
            port = control.getsockname()[1] + 1
            with contextlib.suppress(OSError):
                first.bind(("127.0.0.1", port))
                return [f"127.0.0.1:{port}", *free_addresses(count - 1)]


def children_of(pid: int) -> list[int]:
    """The processes that a process has started and that are still there."""
    listing = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
    )
    children = []
    for line in listing.stdout.splitlines():
        child, parent = line.split()
        if int(parent) == pid:
            children.append(int(child))
    return children
