"""The process in which grammars are tried: `python -m ...trial_process FD`.

It holds the vocabulary and nothing else. Each trial runs in a fork of it, with limits
on time and memory, so that a grammar that explodes ends with its fork. Ends when its
parent does.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import struct
import sys

import llguidance
import msgspec

from rvllm_local.forked_work import limit_memory, limit_time, receive_exactly
from rvllm_local.text.grammar.limits import matcher_error, new_matcher

HEAD = struct.Struct(">IdQ")  # bytes of the grammar, seconds of processor, bytes
_LONGEST_ANSWER = 1000  # bytes
# A fork may wait for the processor so many times what it may take. With 8 a good grammar
# was refused on a machine where nine processes wanted each core.
_WALL_FACTOR = 40


class Vocabulary(msgspec.Struct, frozen=True):
    """A tokenizer as llguidance wants to see it; the first message of the parent."""

    tokens: list[bytes]
    special_token_ids: list[int]
    eos_token_ids: list[int]


class _Words:
    """A tokenizer for llguidance.

    It encodes by the longest match, which is good enough for a trial.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id = vocabulary.eos_token_ids[0]
        self.bos_token_id = None
        self.tokens = vocabulary.tokens
        self.special_token_ids = vocabulary.special_token_ids
        self._ids: dict[bytes, int] = {}
        self._longest = 0
        for token_id, token in enumerate(vocabulary.tokens):
            self._ids[token] = token_id
            self._longest = max(self._longest, len(token))

    def __call__(self, text: bytes | str) -> list[int]:
        data = text
        if isinstance(data, str):
            data = data.encode()
        ids = []
        while data:
            length = self._token_length(data)
            token_id = self._ids.get(data[:length])
            if token_id is not None:
                ids.append(token_id)
            data = data[length:]
        return ids

    def _token_length(self, data: bytes) -> int:
        """Bytes of the longest token that begins `data`; 1 if there is none."""
        length = min(self._longest, len(data))
        while length > 1:
            if data[:length] in self._ids:
                break
            length -= 1
        return length


def main() -> None:
    """Fork for every connection that the parent hands over."""
    descriptor = int(sys.argv[1])
    parent = socket.socket(fileno=descriptor)
    message = _receive_message(parent)
    vocabulary = msgspec.msgpack.decode(message, type=Vocabulary)
    tokenizer = _tokenizer_of(vocabulary)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for forks
    parent.sendall(b"r")
    while True:
        data, descriptors, _, _ = socket.recv_fds(parent, 1, 1)
        if not data:
            return
        for descriptor in descriptors:
            is_fork = os.fork() == 0
            if is_fork:
                parent.close()
                connection = socket.socket(fileno=descriptor)
                _serve(connection, tokenizer)
                os._exit(0)
            os.close(descriptor)


def _tokenizer_of(vocabulary: Vocabulary) -> llguidance.LLTokenizer:
    words = _Words(vocabulary)
    wrapper = llguidance.TokenizerWrapper(words)
    return llguidance.LLTokenizer(wrapper, eos_token=vocabulary.eos_token_ids)


def _serve(connection: socket.socket, tokenizer: llguidance.LLTokenizer) -> None:
    """One trial: an empty answer is a good grammar, any other says what is wrong."""
    head = _receive(connection, HEAD.size)
    length, cpu_s, num_bytes = HEAD.unpack(head)
    text = _receive(connection, length)
    grammar = text.decode()
    _limit(cpu_s, num_bytes)
    matcher = new_matcher(tokenizer, grammar)
    error = matcher_error(matcher) or ""
    answer = error.encode()[:_LONGEST_ANSWER]
    connection.sendall(b"a" + answer)


def _limit(cpu_s: float, num_bytes: int) -> None:
    """End this process when it has had so much; no code of ours has to run for that."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit_time(cpu_s, cpu_s * _WALL_FACTOR)
    limit_memory(num_bytes, for_good=True)


def _receive_message(connection: socket.socket) -> bytes:
    head = _receive(connection, 4)
    (length,) = struct.unpack(">I", head)
    return _receive(connection, length)


def _receive(connection: socket.socket, count: int) -> bytes:
    try:
        return receive_exactly(connection, count)
    except ConnectionError:
        os._exit(0)  # nobody is left to answer


if __name__ == "__main__":
    main()
