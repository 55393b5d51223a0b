"""Everything that shapes a server, in one frozen value. Sizes are in bytes, times in seconds."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

DEFAULT_PORT = 8473
OLLAMA_PORT = 11434


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Where the server listens, whom it answers, and how long and how much it takes.

    `allowed_hosts` are names a request may use for this server beside the loopback ones; `allowed_origins` are web
    origins, matched exactly. Without `api_keys` nobody is asked for one. `keep_alive_s` unloads a model that nobody
    used for so long; None keeps it. `ollama_port` is one more to listen on. Models are fetched
    into `cache_dir`; None is the default folder. Responses are kept in `responses_file`;
    None keeps them in memory.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    is_lenient: bool = False
    max_body: int = 16 * 2**20
    max_header: int = 32 * 2**10
    max_connections: int = 2048
    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    idle_timeout_s: float = 75.0  # of a connection between two requests
    send_timeout_s: float = 60.0  # for a reader that takes nothing
    prepare_timeout_s: float = 20.0  # for a chat template and a tokenizer
    load_timeout_s: float = 900.0
    queue_timeout_s: float = 600.0  # until the first token
    request_timeout_s: float = 3600.0
    keepalive_s: float = 10.0  # between comments in a silent stream
    drain_s: float = 30.0
    keep_alive_s: float | None = None
    pinned: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()  # another name, and the model's own
    tls_certificate: str | None = None
    tls_key: str | None = None
    ollama_port: int | None = None
    cache_dir: Path | None = None
    responses_file: Path | None = None
    responses_max_age_s: float = 30 * 86_400.0
    responses_max_bytes: int = 256 * 2**20


LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


def is_loopback(host: str) -> bool:
    """True for an address that nothing but this machine reaches."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name
        return host == "localhost"
