"""What models' files say, read in processes that can be killed.

Reading builds the model's outline, and parses whatever was put into the files. In the
server's own process that would hold up everybody's streams.
"""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import Protocol

from rvllm_local.child_start import INSPECTION, Spare, take_or_start
from rvllm_local.conversation import prompt_frames as frames
from rvllm_local.errors import ModelFileError
from rvllm_local.framing import FrameError, decode
from rvllm_local.models.locate import ModelFiles
from rvllm_local.options import EngineOptions
from rvllm_local.server.helper_process import receive_frame, stop
from rvllm_local.server.models.inspection_frames import (
    INSPECTED,
    Inspect,
    Inspected,
    ModelFacts,
    Planned,
    What,
)
from rvllm_local.server.models.plan_notes import PlanNote

_CPU_S, _WALL_S = 15.0, 30.0
_MEMORY = 2**30  # bytes
_GRACE_S = 60.0  # for the start of a process on a busy machine
_LOSS_S = 1.0  # in which one that had ended is noticed
_MOST_IDLE = 1  # processes that wait for work


class Inspection(Protocol):
    """Reads models' files. Its methods take long: not for the event loop."""

    def plan(self, files: ModelFiles, options: EngineOptions) -> Planned:
        """What a model will take. Raises as `describe` and a strict `plan_model` do."""

    def context_length(self, files: ModelFiles, options: EngineOptions) -> int | None:
        """Tokens of its context, as far as the options let it; None if none is told."""

    def facts(self, files: ModelFiles) -> ModelFacts | None:
        """What else is told of a model; None for files that cannot be read."""

    def close(self) -> None:
        """Let what waits for work end."""


@dataclass(slots=True)
class _Reader:
    """One process, and how often it has answered."""

    process: subprocess.Popen[bytes]
    connection: socket.socket
    num_answers: int = 0

    def ask(self, frame: bytes) -> Inspected:
        """The answer to a frame. Raises `OSError` or `FrameError` without one."""
        self.connection.sendall(frame)
        answer = decode(receive_frame(self.connection), INSPECTED)
        self.num_answers += 1
        return answer

    def stop(self) -> None:
        stop(self.process, self.connection)


class InspectionProcesses:
    """`Inspection` from processes, one for each thread that asks. For any thread."""

    def __init__(self, spare: Spare | None = None) -> None:
        self._spare = spare  # started with `INSPECTION`
        self._lock = threading.Lock()
        self._idle: list[_Reader] = []

    def plan(self, files: ModelFiles, options: EngineOptions) -> Planned:
        """What a model will take; see `Inspection`."""
        note = PlanNote(files, options)
        noted = note.read()
        if noted is not None:
            return noted
        inspected = self._answer(files, options, "planned")
        if inspected.refused is not None:
            raise inspected.refused.error()
        if inspected.planned is None:
            raise _exploded(files)
        note.write(inspected.planned)
        return inspected.planned

    def context_length(self, files: ModelFiles, options: EngineOptions) -> int | None:
        """Tokens of its context; see `Inspection`."""
        return self._answer(files, options, "context_length").context_length

    def facts(self, files: ModelFiles) -> ModelFacts | None:
        """What else is told of a model; see `Inspection`."""
        return self._answer(files, EngineOptions(), "facts").facts

    def close(self) -> None:
        """Let what waits for work end. Safe to call twice."""
        while reader := self._take():
            reader.stop()

    def _answer(
        self, files: ModelFiles, options: EngineOptions, what: What
    ) -> Inspected:
        inspect = Inspect(
            files.kind,
            str(files.path),
            files.name,
            options,
            what,
            _CPU_S,
            _WALL_S,
            _MEMORY,
        )
        frame = frames.encode(inspect)
        while True:
            reader = self._take() or _new_reader(self._spare)
            began = time.monotonic()
            try:
                answer = reader.ask(frame)
            except (OSError, FrameError):
                reader.stop()
                had_ended = time.monotonic() - began < _LOSS_S
                if reader.num_answers and had_ended:
                    continue  # while it waited for work
                return Inspected()
            except BaseException:
                reader.stop()
                raise
            self._keep(reader)
            return answer

    def _take(self) -> _Reader | None:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return None

    def _keep(self, reader: _Reader) -> None:
        with self._lock:
            if len(self._idle) < _MOST_IDLE:
                self._idle.append(reader)
                return
        reader.stop()


def _new_reader(spare: Spare | None) -> _Reader:
    process, connection = take_or_start(spare, INSPECTION)
    connection.settimeout(_WALL_S + _GRACE_S)
    return _Reader(process, connection)


def _exploded(files: ModelFiles) -> ModelFileError:
    megabytes = _MEMORY // 2**20
    return ModelFileError(
        f"the configuration or header of {files.name} cannot be used: reading it takes "
        f"more than {_CPU_S:g} s or {megabytes} MB"
    )
