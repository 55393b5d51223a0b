"""A rank that is lost or hangs ends the open requests with an error, and all come back."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator

import pytest

from rvllm_local import LLM, SamplingParams
from rvllm_local.clients.process.client import ProcessClient
from rvllm_local.errors import EngineCrashedError
from rvllm_local.options import EngineOptions
from tests.support.ranks import followers_of, needs_ring
from tests.support.tiny import save_tiny

pytestmark = needs_ring
PROMPT = [5, 6, 7]
SHORT = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
LONG = SamplingParams(max_tokens=1900, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, tuple[int, ...]]:
    """A model's folder, and what one process answers with it."""
    folder = save_tiny("llama", tmp_path_factory.mktemp("llama"), seed=1)
    with LLM(str(folder), kv_memory="16MB") as llm:
        (answer,) = llm.generate(PROMPT, SHORT)
    return str(folder), tuple(answer.token_ids)


@pytest.fixture(scope="module")
def job(expected: tuple[str, tuple[int, ...]]) -> Iterator[ProcessClient]:
    options = EngineOptions(ranks=2, kv_memory=16 * 2**20, self_check=False)
    client = ProcessClient(expected[0], options)
    yield client
    client.close()


def tokens_of(client: ProcessClient) -> tuple[int, ...]:
    tokens: list[int] = []
    for event in client.submit(PROMPT, SHORT):
        tokens.extend(event.token_ids)
    return tuple(tokens)


@pytest.mark.parametrize(
    ("rank", "number", "words"),
    [
        (1, signal.SIGKILL, r"rank 1 of 2 .* ended \(signal 9\)"),
        (1, signal.SIGSTOP, "rank 1 of 2 .* gave no sign of life"),
        (0, signal.SIGSTOP, "rank 0 of 2: it gave no sign of life"),
    ],
)
def test_the_loss_of_a_rank_ends_requests_and_nothing_else(
    job: ProcessClient,
    expected: tuple[str, tuple[int, ...]],
    rank: int,
    number: signal.Signals,
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    job.wait_ready(120)
    leader = job.health().pid
    assert leader is not None
    (follower,) = followers_of(leader)
    stream = job.submit([1, 2, 3], LONG)
    next(stream)
    os.kill(follower if rank else leader, number)
    with pytest.raises(EngineCrashedError):
        list(stream)
    assert job.health().state == "restarting"
    message = job.health().message
    job.wait_ready(120)

    assert re.search(words, message), message
    assert tokens_of(job) == expected[1]


def test_a_pipeline_s_ranks_hang_for_no_other(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Rank 0 waits within a step for hidden states that do not come."""
    folder = str(save_tiny("qwen2", tmp_path_factory.mktemp("qwen2"), seed=1))
    with LLM(folder, kv_memory="16MB") as llm:
        (right,) = llm.generate(PROMPT, SHORT)
    options = EngineOptions(
        ranks=2, pipeline=True, kv_memory=16 * 2**20, self_check=False
    )
    client = ProcessClient(folder, options)
    with contextlib.closing(client):
        client.wait_ready(120)
        leader = client.health().pid
        assert leader is not None
        stream = client.submit([1, 2, 3], LONG)
        next(stream)
        os.kill(followers_of(leader)[0], signal.SIGSTOP)
        with pytest.raises(EngineCrashedError):
            list(stream)
        assert "rank 1 of 2" in client.health().message
        client.wait_ready(120)
        assert tokens_of(client) == tuple(right.token_ids)
