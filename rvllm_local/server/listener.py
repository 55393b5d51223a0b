"""The socket's side of a server: uvicorn with h11, and what they leave out: deadlines, limits and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from rvllm_local.errors import ConfigError
from rvllm_local.server.app import Server
from rvllm_local.server.gc_control import collect_when_idle
from rvllm_local.server.http.problems import Problem, shutting_down
from rvllm_local.server.http.refusal_log import RefusalLog
from rvllm_local.server.http.settings import ServerSettings

logger = logging.getLogger(__name__)

_AFTER_DRAIN_S = 5.0
# The last part of the drain time, in which what is still open is ended, and engines are.
_END_S, _END_SHARE = 2.0, 0.25
_BACKLOG = 512


class Listener(uvicorn.Server):
    """Serves one application until a signal comes: the first drains, the second aborts.

    A little before `drain_s` is over, whatever is still open ends with a typed error;
    by then all has ended.
    """

    def __init__(self, server: Server) -> None:
        settings = server.settings
        super().__init__(
            uvicorn.Config(
                server,
                host=settings.host.strip("[]"),
                port=settings.port,
                http=_protocol(settings, server.refusals),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=int(settings.idle_timeout_s),
                timeout_graceful_shutdown=int(settings.drain_s + _AFTER_DRAIN_S),
                h11_max_incomplete_event_size=settings.max_header,
                ssl_certfile=settings.tls_certificate,
                ssl_keyfile=settings.tls_key,
                backlog=_BACKLOG,
            )
        )
        self._server = server
        self._timers: list[asyncio.TimerHandle] = []

    @property
    def port(self) -> int:
        """The port that was bound; useful where 0 was asked for."""
        port: int = self.servers[0].sockets[0].getsockname()[1]
        return port

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are ours while we serve; none is raised again afterwards."""
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGINT, signal.SIGTERM)
        with contextlib.suppress(ValueError, RuntimeError):  # not the main thread
            for number in numbers:
                loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for timer in self._timers:
                timer.cancel()
            with contextlib.suppress(ValueError, RuntimeError):
                for number in numbers:
                    loop.remove_signal_handler(number)

    def stop(self) -> None:
        """Drain at the first call, abort at the second."""
        loop = asyncio.get_running_loop()
        if self.should_exit:
            self.force_exit = True
            self._server.end_by = loop.time() + _END_S
            self._end_all()
            return
        self.should_exit = True
        drain_s = self._server.settings.drain_s
        logger.info("draining: open requests have %g s to end", drain_s)
        end_s = min(_END_S, drain_s * _END_SHARE)
        self._server.end_by = loop.time() + drain_s
        self._timers = [
            loop.call_later(drain_s - end_s, self._end_all),
            loop.call_later(drain_s - end_s / 2, self._cut_off),
        ]

    def _end_all(self) -> None:
        self._server.service.generator.abort(shutting_down())

    def _cut_off(self) -> None:
        """Wait for no client any more: one may have stopped reading."""
        self.force_exit = True
        for connection in list(self.server_state.connections):
            transport = connection.transport
            if transport is not None:
                transport.abort()


async def serve(
    server: Server,
    listening: Sequence[socket.socket],
    on_ready: Callable[[int], None] | None = None,
) -> None:
    """Serve on sockets from `bound` until a signal comes.

    `on_ready` gets the first socket's port once requests are taken. Raises
    `ConfigError`.
    """
    try:
        listener = Listener(server)
        listener.config.load()
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"the TLS certificate or key cannot be used: {error}"
        ) from error
    task = asyncio.create_task(listener.serve(list(listening)))
    garbage = asyncio.create_task(
        collect_when_idle(lambda: server.service.generator.num_open == 0)
    )
    while not listener.started and not task.done():
        await asyncio.sleep(0.005)
    if listener.started and on_ready is not None:
        on_ready(listener.port)
    await task
    garbage.cancel()


@contextlib.contextmanager
def bound(settings: ServerSettings) -> Iterator[list[socket.socket]]:
    """The sockets to listen on: the server's own, then Ollama's if it is wanted.

    "localhost" is both loopback addresses at one port, where the machine has both.
    Raises `ConfigError`.
    """
    remedy = "is another server running there? Choose another --port"
    with contextlib.ExitStack() as stack:
        sockets = _bound(stack, settings.host, settings.port, remedy)
        if settings.ollama_port is not None:
            remedy = (
                "is Ollama running? Quit it (its icon in the menu bar, or systemctl "
                "stop ollama), or choose another --ollama-port"
            )
            sockets += _bound(stack, settings.host, settings.ollama_port, remedy)
        yield sockets


def _bound(
    stack: contextlib.ExitStack, host: str, port: int, remedy: str
) -> list[socket.socket]:
    """The sockets of a host, which `stack` closes. Raises `ConfigError`."""
    sockets: list[socket.socket] = []
    for address in _addresses(host.strip("[]")):
        try:
            sockets.append(stack.enter_context(_socket(address, port)))
        except (OSError, UnicodeError) as error:
            if sockets and _is_absent(error):
                continue
            raise ConfigError(
                f"{host}:{port} cannot be listened on ({error}); {remedy}"
            ) from error
        port = sockets[0].getsockname()[1]
    return sockets


def _addresses(host: str) -> tuple[str, ...]:
    return ("127.0.0.1", "::1") if host == "localhost" else (host,)


def _socket(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, port), family=family, backlog=_BACKLOG)


def _is_absent(error: Exception) -> bool:
    """True if the machine has no such address, as one without IPv6."""
    absent = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)
    return isinstance(error, OSError) and error.errno in absent


def _send_at_once(transport: asyncio.Transport) -> None:
    """Have no small packet wait until the one before it was acknowledged.

    Readers acknowledge up to 40 ms late, so tokens would come in bunches. asyncio sees
    to it for sockets that it has made, and this one it has not.
    """
    connection = transport.get_extra_info("socket")
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _protocol(settings: ServerSettings, refusal_log: RefusalLog) -> type[H11Protocol]:
    """A protocol class bound to one server's limits: uvicorn makes the instances itself."""

    class Bound(_Protocol):
        rules = settings
        refusals = refusal_log

    return Bound


class _Protocol(H11Protocol):
    """h11 with deadlines for a request's head and for a reader that takes nothing, and a limit of connections."""

    rules: ServerSettings
    refusals: RefusalLog

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _send_at_once(transport)
        if len(self.connections) > self.rules.max_connections:
            self._refuse(
                Problem(
                    503,
                    "too many connections are open",
                    "too_many_connections",
                    retry_after_s=1.0,
                )
            )
            return
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_head_timer()
        elif self.conn.trailing_data[0]:
            self._start_head_timer()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(
                self.rules.send_timeout_s, self.transport.abort
            )

    def resume_writing(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        self._refuse(
            Problem(400, "this is not HTTP that can be understood", "bad_http")
        )

    def _start_head_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(
                self.rules.header_timeout_s, self._head_is_late
            )

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self._refuse(
                Problem(408, "the request's head took too long to come", "slow_head")
            )

    def _refuse(self, problem: Problem) -> None:
        """Answer below ASGI, where no request is known, and close.

        An answer that has begun is cut off, and one that has not is not begun.
        """
        self.refusals.note("a connection", problem)
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        body = json.dumps(problem.openai()).encode()
        headers = [
            (name.encode(), value.encode()) for name, value in problem.headers().items()
        ]
        headers += [(b"content-type", b"application/json"), (b"connection", b"close")]
        headers.append((b"content-length", str(len(body)).encode()))
        try:
            for event in (
                h11.Response(
                    status_code=problem.status, headers=headers, reason=b"Refused"
                ),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:
            self.transport.abort()
            return
        self.transport.close()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_timers(self) -> None:
        self._stop_head_timer()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
