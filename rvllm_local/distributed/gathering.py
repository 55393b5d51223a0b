"""Rank 0 starts or awaits the other ranks, lets them prove themselves, and tells the job."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from rvllm_local.distributed import frames
from rvllm_local.distributed.agreement import difference, versions
from rvllm_local.distributed.backends import choose_backend
from rvllm_local.distributed.door import Door
from rvllm_local.distributed.hosts import control_address, rank_addresses, secret_of
from rvllm_local.distributed.invitation import Invitation, start_rank
from rvllm_local.distributed.meeting import LOOPBACK, free_addresses
from rvllm_local.distributed.running_ranks import claim_rank
from rvllm_local.distributed.team import RankLink, exit_in_words
from rvllm_local.errors import ConfigError, EngineError
from rvllm_local.options import EngineOptions
from rvllm_local.process_notes import Note

_LOOK_S = 0.5  # between two looks at the processes that were started
_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class Gathered:
    """All ranks are there and know the job.

    links: of ranks 1 and after.
    processes: those that were started here, by rank.
    pids: of the ranks on this machine.
    meeting: how they form MLX's group.
    """

    links: list[RankLink]
    processes: dict[int, subprocess.Popen[bytes]]
    pids: dict[int, int]
    meeting: frames.Meeting


class Gathering:
    """Brings the ranks of one job together. Whoever does not prove itself learns nothing.

    Keep it as long as the job lasts: meanwhile there can be no other one on its hosts.
    """

    def __init__(
        self,
        options: EngineOptions,
        model: str,
        say: Callable[[str], None],
        *,
        measures: bool = False,
    ) -> None:
        """`say` is told who is still missing. With `measures` nothing is served.

        Raises `ConfigError` for hosts or a back end that cannot be.
        """
        self._options = options
        self._meeting = meeting_of(options)
        self._model = model
        self._say = say
        self._job_options = None if measures else options
        self._links: dict[int, RankLink] = {}
        self._pids: dict[int, int] = {}
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._said = ""
        self._secret = secrets.token_bytes(_SECRET_BYTES)
        self._claim: Note | None = None
        address = (LOOPBACK, 0)
        if options.hosts is not None:
            self._claim = claim_rank(options.hosts, 0)
            self._secret = secret_of(options.hosts)
            address = control_address(options.hosts)
        self._listener = _listen(address)
        self._door = Door(self._listener, self._secret, self._welcome)
        self._joining = threading.Lock()

    def gather(self, deadline_s: float | None = None) -> Gathered:
        """Wait for all ranks. Raises `EngineError` for one that cannot serve.

        Those that are still missing after `deadline_s` seconds are named in the error.
        """
        give_up = None if deadline_s is None else time.monotonic() + deadline_s
        with self._listener:
            if self._options.hosts is None:
                self._start_ranks()
            while missing := self._missing():
                if give_up is not None and time.monotonic() > give_up:
                    raise EngineError(self._advice(missing))
                self._check_processes()
                self._door.look(_LOOK_S)
                if self._options.hosts is not None and (missing := self._missing()):
                    self._say_once(self._advice(missing))
        self._door.close()
        self._tell_job()
        links = [link for _, link in sorted(self._links.items())]
        return Gathered(links, self._processes, self._pids, self._meeting)

    def abandon(self) -> None:
        """End what was started."""
        self._listener.close()
        self._door.close()
        for link in self._links.values():
            link.close()
        for process in self._processes.values():
            process.kill()
        if self._claim is not None:
            self._claim.close()

    def _start_ranks(self) -> None:
        host, port = self._listener.getsockname()
        for rank in range(1, self._options.ranks):
            invitation = Invitation(
                host,
                port,
                rank,
                self._options.ranks,
                self._secret,
                self._model,
                os.getpid(),
                self._options.cache_dir,
            )
            self._processes[rank] = start_rank(invitation)

    def _missing(self) -> list[int]:
        ranks = range(1, self._options.ranks)
        return [rank for rank in ranks if rank not in self._links]

    def _advice(self, missing: list[int]) -> str:
        parts = []
        for rank in missing:
            parts.append(f"rank {rank} at {self._host_of(rank)}")
        return (
            f"waiting for {', '.join(parts)}: run `rvllm rank MODEL --hosts FILE "
            "--rank N` there"
        )

    def _check_processes(self) -> None:
        for rank, process in self._processes.items():
            status = process.poll()
            if status is not None:
                raise EngineError(
                    f"rank {rank} of {self._options.ranks} ended before it had joined "
                    f"({exit_in_words(status)})"
                )

    def _say_once(self, message: str) -> None:
        if message != self._said:
            self._say(message)
        self._said = message

    def _welcome(self, rank: int, link: RankLink, hello: frames.Hello) -> None:
        """Keep a rank that is one of the job's. Raises `EngineError` for others."""
        link.peer = self._host_of(rank)
        with self._joining:
            reason = self._objection(rank, hello)
            if reason is None:
                if self._is_here(rank):
                    self._pids[rank] = hello.pid
                self._links[rank] = link
                return
        with contextlib.suppress(OSError):
            link.send(frames.Failed("EngineError", reason))
        raise EngineError(reason)

    def _objection(self, rank: int, hello: frames.Hello) -> str | None:
        """Why a rank cannot take part; None if it can."""
        if hello.ranks != self._options.ranks:
            return (
                f"rank {rank} has a file of {hello.ranks} hosts, and rank 0 one of "
                f"{self._options.ranks}; give all ranks the same file"
            )
        if not 0 < rank < self._options.ranks:
            return f"there is no rank {rank} in a job of {self._options.ranks}"
        if rank in self._links:
            return f"rank {rank} is there already"
        differing = difference(versions(), hello.versions)
        if differing is not None:
            return f"rank {rank} has other versions: {differing}"
        return None

    def _host_of(self, rank: int) -> str:
        hosts = self._options.hosts
        if hosts is None or rank >= self._options.ranks:
            return LOOPBACK
        return hosts.addresses[rank][0]

    def _is_here(self, rank: int) -> bool:
        hosts = self._options.hosts
        return hosts is None or hosts.addresses[rank][0] == hosts.addresses[0][0]

    def _tell_job(self) -> None:
        for rank, link in self._links.items():
            pid = os.getpid() if self._is_here(rank) else 0
            link.send(frames.Job(pid, self._meeting, self._job_options))


def meeting_of(options: EngineOptions) -> frames.Meeting:
    """How the ranks form MLX's group. Raises as `choose_backend`."""
    backend = choose_backend(options)
    if options.hosts is None:
        return frames.Meeting(backend, free_addresses(options.ranks))
    addresses = rank_addresses(options.hosts)
    return frames.Meeting(backend, addresses, options.hosts.devices)


def _listen(address: tuple[str, int]) -> socket.socket:
    """A socket that listens on one interface alone. Raises `ConfigError`."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        host, port = address
        raise ConfigError(
            f"rank 0 cannot listen at {host}:{port}: {error.strerror}; "
            "is another job running, or is the address another machine's?"
        ) from error
    return listener
