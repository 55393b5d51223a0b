"""Tries grammars in a process that can be killed, before they are compiled in this one.

A grammar may take minutes or gigabytes in code that heeds no deadline, or abort its
process. One that ends well in a fork with limits does so here as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass

import msgspec

from rvllm_local.errors import GrammarError, QueueFullError
from rvllm_local.text.grammar.trial_process import HEAD, Vocabulary

logger = logging.getLogger(__name__)

_START_S = 30.0
_SLOT_S = 10.0  # how long a heavy grammar waits for its turn
_KEPT = 1000  # grammars that are known to be good
_PASSED = ("PATH", "HOME", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV")


@dataclass(frozen=True, slots=True)
class _Limits:
    """What a trial may take, and how many of its kind run at once."""

    cpu_s: float
    num_bytes: int
    at_once: int


# Ordinary grammars take milliseconds. Those that take longer try again in the second
# lane, where they wait for each other and for nobody else.
_QUICK = _Limits(0.2, 128 * 2**20, 16)
_HEAVY = _Limits(1.5, 512 * 2**20, 2)


class _LimitReachedError(Exception):
    """The trial was ended by its limits, or by its own fault."""


class Trials:
    """One process with a model's vocabulary, started when the first grammar comes."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._parent_end: socket.socket | None = None
        self._quick = threading.BoundedSemaphore(_QUICK.at_once)
        self._heavy = threading.BoundedSemaphore(_HEAVY.at_once)
        self._accepted: OrderedDict[bytes, None] = OrderedDict()

    def check(self, grammar: str) -> None:
        """Raise `GrammarError` for a grammar that cannot be compiled within limits.

        Raises `QueueFullError` if too many heavy ones are being tried.
        """
        key = hashlib.blake2b(grammar.encode(), digest_size=16).digest()
        with self._lock:
            if key in self._accepted:
                self._accepted.move_to_end(key)
                return
        error = self._error_of(grammar)
        if error:
            raise GrammarError(error)
        with self._lock:
            self._accepted[key] = None
            if len(self._accepted) > _KEPT:
                self._accepted.popitem(last=False)

    def _error_of(self, grammar: str) -> str:
        with self._quick, contextlib.suppress(_LimitReachedError):
            return self._try(grammar, _QUICK)
        if not self._heavy.acquire(timeout=_SLOT_S):
            raise QueueFullError(
                "too many heavy grammars are being compiled; try again later", 1.0
            )
        try:
            return self._try(grammar, _HEAVY)
        except _LimitReachedError:
            megabytes = _HEAVY.num_bytes // 2**20
            return (
                f"the grammar takes longer than {_HEAVY.cpu_s} s or more than "
                f"{megabytes} MB to compile, or makes its compiler fail"
            )
        finally:
            self._heavy.release()

    def _try(self, grammar: str, limits: _Limits) -> str:
        """What is wrong with a grammar, empty if nothing; "" as well without a process."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            if not self._hand_over(theirs):
                return ""
            theirs.close()
            data = grammar.encode()
            with contextlib.suppress(OSError):  # the answer says more
                ours.sendall(HEAD.pack(len(data), limits.cpu_s, limits.num_bytes))
                ours.sendall(data)
            answer = bytearray()
            with contextlib.suppress(OSError):
                while part := ours.recv(4096):
                    answer += part
        if not answer:
            raise _LimitReachedError
        return answer[1:].decode(errors="replace")

    def _hand_over(self, connection: socket.socket) -> bool:
        """Give the process one end; it is started anew if it has gone."""
        with self._lock:
            for _ in range(2):
                if self._parent_end is None:
                    self._parent_end = self._start()
                if self._parent_end is None:
                    return False
                try:
                    socket.send_fds(self._parent_end, [b"t"], [connection.fileno()])
                except OSError:
                    self._parent_end = None
                else:
                    return True
        return False

    def _start(self) -> socket.socket | None:
        """The connection to a new process; None if none can be started."""
        ours, theirs = socket.socketpair()
        module = "rvllm_local.text.grammar.trial_process"
        environment = {name: os.environ[name] for name in _PASSED if name in os.environ}
        try:
            with theirs:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", module, str(theirs.fileno())],
                    env=environment,
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            weakref.finalize(self, _stop, process, ours)
            ours.settimeout(_START_S)
            data = msgspec.msgpack.encode(self._vocabulary)
            ours.sendall(struct.pack(">I", len(data)) + data)
            is_ready = ours.recv(1) == b"r"
        except OSError as error:
            logger.warning("grammars are compiled without a trial: %s", error.strerror)
            ours.close()
            return None
        if not is_ready:
            logger.warning("grammars are compiled without a trial: it did not start")
            return None
        ours.settimeout(None)
        return ours


def _stop(process: subprocess.Popen[bytes], connection: socket.socket) -> None:
    """The process ends when its connection does."""
    connection.close()
    try:
        process.wait(2.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
