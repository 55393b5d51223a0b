"""An engine that reads texts alone, in a process of its own, beside one that writes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rvllm_local import host
from rvllm_local.clients.contract import open_stream
from rvllm_local.clients.process.client import ProcessClient
from rvllm_local.conversation.pooled import read_requests
from rvllm_local.options import EngineOptions
from rvllm_local.text.read_inputs import EncodedInput
from tests.support.pooled import save_embedder
from tests.support.tiny import save_tiny

IN_LINE = pytest.mark.skipif(
    sys.platform != "linux" or host.may_have_gpu(),
    reason="a kernel that lets streams pass, where the processors compute",
)


@pytest.fixture
def reading(tmp_path: Path) -> Iterator[ProcessClient]:
    client = ProcessClient(str(save_embedder(tmp_path / "embedder")))
    yield client
    client.close()


@pytest.fixture
def writing(tmp_path: Path) -> Iterator[ProcessClient]:
    folder = tmp_path / "llama"
    save_tiny("llama", folder, seed=2)
    client = ProcessClient(str(folder), EngineOptions(kv_memory=4_000_000))
    yield client
    client.close()


def classes_of(client: ProcessClient) -> set[int]:
    """The scheduling classes of a process's threads."""
    tasks = Path(f"/proc/{client.health().pid}/task")
    return {os.sched_getscheduler(int(task.name)) for task in tasks.iterdir()}


@IN_LINE
def test_what_reads_texts_gets_the_processors_that_streams_leave(
    reading: ProcessClient, writing: ProcessClient
) -> None:
    assert classes_of(reading) == {os.SCHED_IDLE}
    assert classes_of(writing) == {os.SCHED_OTHER}
    pid = reading.health().pid
    assert pid is not None
    assert os.getsid(pid) == os.getsid(writing.health().pid or 0), "weighed together"


def test_texts_are_read_whatever_streams_there_are(reading: ProcessClient) -> None:
    encoded = [EncodedInput((2, 5, 3))] * 20
    with open_stream(reading, read_requests(encoded, beside_s=0.01)) as stream:
        vectors = {event.index: event.vector for event in stream}
    assert len(vectors) == 20
    assert all(vectors.values())
