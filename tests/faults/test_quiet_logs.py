"""What clients do wrong is counted in the log, and no traceback is shown for it."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
from pathlib import Path

import pytest

from rvllm_local.server.http.problems import Problem
from rvllm_local.server.http.refusal_log import RefusalLog
from tests.support.api import CHAT, PacedClient, served


def test_the_first_refusals_are_told_and_the_others_summed_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def refuse() -> None:
        log = RefusalLog(every_s=3600)
        for number in range(500):
            status = 400 if number % 5 else 415
            log.note("/v1/chat/completions", Problem(status, "no", "bad", "n"))
        log.tell()
        log.tell()

    with caplog.at_level(logging.INFO):
        asyncio.run(refuse())
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "/v1/chat/completions refused: 415 bad, field n"
    assert len(lines) == 11
    assert lines[10] == (
        "490 more refused within 3600 s: 392 x /v1/chat/completions 400 bad; "
        "98 x /v1/chat/completions 415 bad"
    )


def test_no_traceback_for_what_is_no_http(
    tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    body = json.dumps(CHAT).encode()
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    )
    chunked = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    wrong = [
        b"\x16\x03\x01\x00\xa5",
        b"GET / HTTP/2.0\r\n\r\n",
        head + body + b"\x00\x01\x02 rest\r\n\r\n",  # while an answer is on its way
        chunked + b"5\r\nabcde\r\nZZ\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ]
    gc.collect()  # what other tests left may tell of itself when it is collected
    with (
        caplog.at_level(logging.INFO),
        served(
            {"tiny": tiny}, opener=lambda files, options: PacedClient(0.001)
        ) as running,
    ):
        running.post(CHAT)
        for data in wrong * 5:
            running.raw(data, wait_s=1.0)
        assert running.post(CHAT).status_code == 200
    assert not [record for record in caplog.records if record.exc_info]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
