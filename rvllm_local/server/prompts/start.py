"""Starts the process in which a model's prompts are made."""

from __future__ import annotations

import contextlib
import socket
import subprocess

from rvllm_local.child_start import PROMPTS, Spare, take_or_start
from rvllm_local.conversation import prompt_frames as frames
from rvllm_local.errors import ModelFileError
from rvllm_local.framing import FrameError, decode
from rvllm_local.models.locate import ModelFiles
from rvllm_local.server.helper_process import receive_frame, stop
from rvllm_local.server.prompts.proven import TextProof

MEMORY = 2**30  # bytes that reading a model's texts, or one piece of work, may take
_LOAD_CPU_S = 30.0
_LOAD_WALL_S = 60.0
Started = tuple[subprocess.Popen[bytes], socket.socket, frames.TextFacts]


def start(files: ModelFiles, spare: Spare | None = None) -> Started:
    """A process that has read the model's tokenizer, and what it says of it.

    A `spare` one was started with `PROMPTS`. Raises `ModelFileError` or
    `UnsupportedModelError` where that fails.
    """
    proof = TextProof(files)
    process, connection = take_or_start(spare, PROMPTS)
    try:
        facts = _facts_from(connection, files)
        proof.note()
    except BaseException:
        stop(process, connection)
        raise
    return process, connection, facts


def _facts_from(connection: socket.socket, files: ModelFiles) -> frames.TextFacts:
    """Have the process read the model."""
    load = frames.Load(
        files.kind,
        str(files.path),
        files.name,
        _LOAD_CPU_S,
        MEMORY,
    )
    connection.settimeout(_LOAD_WALL_S)
    loaded = frames.Loaded()
    with contextlib.suppress(OSError, FrameError):
        connection.sendall(frames.encode(load))
        body = receive_frame(connection)
        loaded = decode(body, frames.LOADED)
    connection.settimeout(None)
    if loaded.refused is not None:
        raise loaded.refused.error()
    if loaded.facts is None:
        megabytes = MEMORY // 2**20
        raise ModelFileError(
            f"the tokenizer or chat template of {files.name} cannot be used: "
            f"reading it takes more than {_LOAD_CPU_S:g} s or "
            f"{megabytes} MB, or makes its library abort"
        )
    return loaded.facts
