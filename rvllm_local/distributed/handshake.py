"""Both sides of a connection prove that they know the job's secret, without telling it.

Each answers the other's random challenge with an HMAC. A stranger learns a challenge
and nothing else. What follows on the connection is not encrypted.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import struct

from rvllm_local.errors import EngineError
from rvllm_local.framing import FrameError, receive_exactly

_GREETING = b"rvllm ranks 3\n"  # changes with the protocol
_CHALLENGE = 32  # bytes
_RANK = struct.Struct(">H")
_PROOF = 32
_DEADLINE_S = 10.0


def let_in(connection: socket.socket, secret: bytes) -> int:
    """Rank 0's side: the number of the rank that has proven itself.

    Raises `EngineError` for anybody else, and OSError if the connection fails.
    """
    connection.settimeout(_DEADLINE_S)
    challenge = secrets.token_bytes(_CHALLENGE)
    connection.sendall(_GREETING + challenge)
    answer = _exactly(connection, _CHALLENGE + _RANK.size + _PROOF)
    their_challenge = answer[:_CHALLENGE]
    number = answer[_CHALLENGE : _CHALLENGE + _RANK.size]
    proof = answer[_CHALLENGE + _RANK.size :]
    expected = _proof(secret, b"rank", challenge, their_challenge, number)
    if not hmac.compare_digest(proof, expected):
        raise EngineError("somebody without the job's secret connected")
    connection.sendall(_proof(secret, b"leader", their_challenge, challenge, number))
    connection.settimeout(None)
    (rank,) = _RANK.unpack(number)
    return int(rank)


def enter(connection: socket.socket, secret: bytes, rank: int) -> None:
    """A rank's side. Raises `EngineError` if the other one is not its rank 0."""
    connection.settimeout(_DEADLINE_S)
    greeting = _exactly(connection, len(_GREETING) + _CHALLENGE)
    if not greeting.startswith(_GREETING):
        raise EngineError("what listens there is no rank 0 of this version")
    their_challenge = greeting[len(_GREETING) :]
    challenge = secrets.token_bytes(_CHALLENGE)
    number = _RANK.pack(rank)
    proof = _proof(secret, b"rank", their_challenge, challenge, number)
    connection.sendall(challenge + number + proof)
    answer = _exactly(connection, _PROOF)
    expected = _proof(secret, b"leader", challenge, their_challenge, number)
    if not hmac.compare_digest(answer, expected):
        raise EngineError("rank 0 does not know this job's secret")
    connection.settimeout(None)


def _proof(secret: bytes, side: bytes, *parts: bytes) -> bytes:
    return hmac.digest(secret, side + b"".join(parts), "sha256")


def _exactly(connection: socket.socket, count: int) -> bytes:
    try:
        received = receive_exactly(connection, count)
    except FrameError as error:
        raise EngineError(f"no proof came: {error}") from error
    if received is None:
        raise EngineError(
            "the other side closed the connection before it had proven itself; "
            "do both have the same secret, and is this rank there already?"
        )
    return received
