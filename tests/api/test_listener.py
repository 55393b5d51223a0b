"""Sockets that are slow, silent, endless or broken: each is ended in its time, and others notice nothing."""

from __future__ import annotations

import json
import select
import socket
import struct
import threading

import pytest

from rvllm_local.errors import ConfigError
from rvllm_local.server.http.settings import ServerSettings
from rvllm_local.server.listener import bound
from tests.support.api import CHAT, Running, read_all

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
LONG = {**CHAT, "max_tokens": 5000, "stream": True}


def problem(answer: bytes) -> tuple[int, str]:
    """Status and code of a typed error."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def read_words(paced: Running, words: list[str], is_over: threading.Event) -> None:
    """Read a stream, and note its words as they come."""
    with paced.client.stream("POST", "/v1/chat/completions", json=LONG) as answer:
        for line in answer.iter_lines():
            if line.startswith("data"):
                words.append(line)
            if is_over.is_set():
                return


def test_a_silent_socket_is_told_and_closed(paced: Running) -> None:
    assert problem(paced.raw(b"", wait_s=60)) == (408, "slow_head")


def test_a_head_that_trickles_is_ended(paced: Running) -> None:
    with paced.connect() as connection:
        connection.settimeout(60)
        for byte in HEAD * 100:
            is_answered, _, _ = select.select([connection], [], [], 0.02)
            if is_answered:
                break
            connection.sendall(bytes([byte]))
        assert problem(read_all(connection)) == (408, "slow_head")


def test_a_second_head_that_trickles_is_ended_too(paced: Running) -> None:
    with paced.connect() as connection:
        connection.settimeout(60)
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /v1/mod")
        assert b"slow_head" in read_all(connection)


def test_a_body_that_does_not_come_is_ended(paced: Running) -> None:
    assert problem(paced.raw(HEAD + b"Content-Length: 100\r\n\r\n{")) == (
        408,
        "slow_body",
    )


def test_a_body_that_is_too_large_is_refused_before_it_is_read(paced: Running) -> None:
    assert problem(paced.raw(HEAD + b"Content-Length: 99999999\r\n\r\n")) == (
        413,
        "body_too_large",
    )
    assert (
        problem(paced.raw(HEAD + b"Content-Length: 99999999999999999999\r\n\r\n"))[0]
        == 400
    )


def test_an_endless_body_is_cut(paced: Running) -> None:
    chunk = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
    with paced.connect() as connection:
        connection.settimeout(60)
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        try:
            for _ in range(64):
                connection.sendall(chunk)
        except OSError:
            return
        assert b"413" in read_all(connection)


@pytest.mark.parametrize(
    "data",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20, b"GET / HTTP/9.9\r\n\r\n", b"\r\n\r\n\r\n \r\n\r\n", b"GET /\r\n\r\n",
     b"GET / HTTP/1.1\r\nHost: a\r\nBad Header: x\r\n\r\n", b"GET / HTTP/1.1\r\nHost: \x00\r\n\r\n",
     HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"],
)  # fmt: skip
def test_what_is_no_http_is_refused(paced: Running, data: bytes) -> None:
    answer = paced.raw(data, wait_s=60)
    assert answer.startswith(
        (b"HTTP/1.1 400", b"HTTP/1.1 408", b"HTTP/1.1 403", b"HTTP/1.1 501")
    ), answer[:200]


def test_a_head_without_end_is_refused(paced: Running) -> None:
    answer = paced.raw(
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X-A: " + b"a" * 50_000, wait_s=60
    )
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400")


def test_connections_beyond_the_limit_are_refused_at_once(paced: Running) -> None:
    held = [paced.connect() for _ in range(24)]
    try:
        with paced.connect() as one:
            one.settimeout(60)
            assert problem(read_all(one)) == (503, "too_many_connections")
    finally:
        for one in held:
            one.close()
    paced.eventually(lambda: len(paced.listener.server_state.connections) < 4)


def test_a_reader_that_takes_nothing_is_cut_off(paced: Running) -> None:
    paced.engine.word, before = "x" * 20_000, paced.engine.word
    try:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", paced.port))
            body = (
                b'{"model": "tiny", "prompt": "x", "max_tokens": 5000, "stream": true}'
            )
            head = HEAD.replace(b"/v1/chat/completions", b"/v1/completions")
            connection.sendall(
                head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            paced.eventually(lambda: paced.engine.open)
            paced.eventually(lambda: not paced.engine.open)
    finally:
        paced.engine.word = before


@pytest.mark.parametrize("abrupt", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_ends_its_request(
    paced: Running, stream: bool, abrupt: bool
) -> None:
    body = json.dumps({**LONG, "stream": stream}).encode()
    connection = paced.connect()
    connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
    paced.eventually(lambda: paced.engine.open)
    if abrupt:
        connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
    connection.close()
    paced.eventually(lambda: not paced.engine.open)


def test_requests_in_a_row_on_one_connection_are_answered_in_order(
    paced: Running,
) -> None:
    one = b"GET /v1/models/%s HTTP/1.1\r\nHost: localhost\r\n%s\r\n"
    requests = [(b"tiny", b""), (b"nobody", b""), (b"tiny", b"Connection: close\r\n")]
    with paced.connect() as connection:
        connection.settimeout(60)
        connection.sendall(b"".join(one % request for request in requests))
        answers = read_all(connection)
    assert [part.split()[0] for part in answers.split(b"HTTP/1.1 ")[1:]] == [
        b"200",
        b"404",
        b"200",
    ]


def test_no_token_waits_until_the_one_before_was_acknowledged(paced: Running) -> None:
    paced.client.get("/health")
    (connection, *_) = paced.listener.server_state.connections
    sending = connection.transport.get_extra_info("socket")
    assert sending.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def test_others_notice_nothing(paced: Running) -> None:
    words: list[str] = []
    is_over = threading.Event()
    reader = threading.Thread(target=read_words, args=(paced, words, is_over))
    reader.start()
    silent = [paced.connect() for _ in range(8)]
    try:
        for _ in range(10):
            before = len(words)
            paced.raw(b"nonsense\r\n\r\n", wait_s=60)
            paced.client.post(
                "/v1/chat/completions",
                content=b"[" * 50_000,
                headers={"content-type": "application/json"},
            )
            paced.eventually(lambda before=before: len(words) > before)
    finally:
        is_over.set()
        reader.join()
        for one in silent:
            one.close()


def test_a_silent_stream_is_kept_alive_with_comments(paced: Running) -> None:
    paced.engine.may_speak.clear()
    body = {**CHAT, "max_tokens": 1, "stream": True}
    lines: list[str] = []
    try:
        with paced.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            for line in answer.iter_lines():
                lines.append(line)
                if lines.count(": keepalive") == 3:
                    paced.engine.may_speak.set()
    finally:
        paced.engine.may_speak.set()
    assert lines.count(": keepalive") >= 3
    assert [line for line in lines if line][-1] == "data: [DONE]"


def families(settings: ServerSettings) -> set[tuple[socket.AddressFamily, int]]:
    with bound(settings) as listening:
        return {(each.family, each.getsockname()[1]) for each in listening}


def test_localhost_is_both_loopback_addresses_at_one_port() -> None:
    found = families(ServerSettings(host="localhost", port=0))
    expected = {socket.AF_INET}
    if has_ipv6():
        expected.add(socket.AF_INET6)
    assert {family for family, _ in found} == expected
    assert len({port for _, port in found}) == 1


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def test_an_address_is_one_socket() -> None:
    found = families(ServerSettings(host="127.0.0.1", port=0))
    assert {family for family, _ in found} == {socket.AF_INET}


def test_a_port_that_is_taken_on_one_of_both_is_refused() -> None:
    if not has_ipv6():
        pytest.skip("needs IPv6")
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as other:
        port = other.getsockname()[1]
        with (
            pytest.raises(ConfigError, match="cannot be listened on"),
            bound(ServerSettings(host="localhost", port=port)),
        ):
            pass
