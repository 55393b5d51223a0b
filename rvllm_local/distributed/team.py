"""The other ranks as rank 0 has them: who has joined, what they are told, their end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence

from rvllm_local.distributed import frames
from rvllm_local.distributed.attendance import Attendance
from rvllm_local.distributed.link import Link, end_in_words
from rvllm_local.errors import EngineError, error_of
from rvllm_local.framing import FrameError

_EXIT_S = 3.0  # in which a process that has closed its connection can be collected
_CLOSE_S = 5.0  # in which it can write out what it keeps on disk
_READY_S = 3600.0
_STDERR = 2
RankLink = Link[frames.FromRank]


class Team:
    """Tells all other ranks the same. The loss of one of them ends this process.

    There is no way on without a rank: it has a part of the weights and of the KV. Who
    started this process starts another one, which starts all ranks anew.
    """

    def __init__(
        self,
        links: Sequence[RankLink],
        processes: Mapping[int, subprocess.Popen[bytes]],
    ) -> None:
        """`links` are those of ranks 1 and after; `processes` those of this machine."""
        self._links = links
        self._processes = processes
        self._ready: dict[int, frames.Ready] = {}
        self._verdicts: dict[int, bool] = {}
        self._attendance = Attendance(range(1, len(links) + 1))
        self._changed = threading.Condition()
        self._ending = threading.Lock()
        self._is_over = False

    def start(self, pids: Mapping[int, int]) -> None:
        """Listen to the ranks from now on. `pids` are those of this machine, by rank."""
        for rank, link in enumerate(self._links, start=1):
            self._start_link(rank, link, pids.get(rank))

    def _start_link(self, rank: int, link: RankLink, pid: int | None) -> None:
        def take(frame: frames.FromRank) -> None:
            self._take(rank, frame)

        def lost(reason: str) -> None:
            self._lose(rank, reason)

        link.start(take, lost, pid)

    def tell(self, frame: frames.Frame) -> None:
        """Send a frame to all other ranks."""
        for rank, link in enumerate(self._links, start=1):
            try:
                link.send(frame)
            except OSError as error:
                self._lose(rank, end_in_words(error))

    def ask(self, frame: frames.Frame) -> bool:
        """Tell all other ranks, and wait for their verdicts. True if all are good.

        One that never answers is lost, which ends this process.
        """
        with self._changed:
            self._verdicts.clear()
        self.tell(frame)
        with self._changed:
            self._changed.wait_for(lambda: len(self._verdicts) == len(self._links))
            return all(self._verdicts.values())

    @contextlib.contextmanager
    def together(self, call: frames.Call) -> Iterator[None]:
        """Tell all ranks of a call, which has to be made in the block.

        One that fails there has left the ranks at different points: the job ends.
        """
        self.tell(call)
        try:
            yield
        except Exception as error:
            kind = type(error).__name__
            self._blame(f"a step of all ranks failed on rank 0 with {kind}")
            raise

    def check_present(self) -> None:
        """Return if all other ranks are there.

        One that was lost ends this process, under its own name: a sum that fails does
        not say whose end it was.
        """
        number = self._attendance.next_number()
        self.tell(frames.RollCall(number))
        self._attendance.wait(number)

    def _blame(self, failure: str) -> None:
        """End all ranks for a failure, unless the loss of one explains it."""
        self.check_present()
        self.fail(failure)

    def await_ready(self, ready: frames.Ready) -> None:
        """Return when all ranks have loaded their parts; `ready` is rank 0's.

        Raises `EngineError` if one has loaded it otherwise.
        """
        with self._changed:
            is_complete = self._changed.wait_for(
                lambda: len(self._ready) == len(self._links), _READY_S
            )
        if not is_complete:
            raise EngineError(self._slow_in_words())
        for rank, other in sorted(self._ready.items()):
            if other != ready:
                raise EngineError(
                    f"rank {rank} has {other.num_blocks} blocks and is called "
                    f"{other.mode}, and rank 0 has {ready.num_blocks} and is called "
                    f"{ready.mode}; give all ranks the same settings"
                )

    def _slow_in_words(self) -> str:
        names = []
        for rank in range(1, len(self._links) + 1):
            if rank not in self._ready:
                names.append(self._name(rank))
        return (
            f"{', '.join(names)} had not loaded its part within {_READY_S:.0f} s; "
            "what it says on its machine tells why"
        )

    def be_strict(self) -> None:
        """From now on a rank that is silent for a short time is taken to hang."""
        self.tell(frames.Serving())
        for link in self._links:
            link.be_strict()

    def close(self) -> None:
        """End the other ranks in order. Safe to call twice."""
        with self._ending:
            if self._is_over:
                return
            self._is_over = True
        self._attendance.end()
        for link in self._links:
            with contextlib.suppress(OSError):
                link.send(frames.Close())
        for process in self._processes.values():
            try:
                process.wait(_CLOSE_S)
            except subprocess.TimeoutExpired:
                process.kill()

    def fail(self, reason: str) -> None:
        """End all ranks, and this process: nothing can be computed any more."""
        with self._ending:
            if self._is_over:
                return
            self._is_over = True
            for process in self._processes.values():
                with contextlib.suppress(OSError):
                    process.kill()
            # In one piece, on a line of its own: MLX writes there as well, word by word.
            with contextlib.suppress(OSError):
                os.write(_STDERR, f"\n{reason}\n".encode())
            self._attendance.end()
            os._exit(frames.RANK_LOST)

    def _take(self, rank: int, frame: frames.FromRank) -> None:
        if isinstance(frame, frames.Ready):
            with self._changed:
                self._ready[rank] = frame
                self._changed.notify_all()
        elif isinstance(frame, frames.Verdict):
            with self._changed:
                self._verdicts[rank] = frame.is_done
                self._changed.notify_all()
        elif isinstance(frame, frames.Present):
            self._attendance.note_present(rank, frame.number)
        elif isinstance(frame, frames.Failed):
            self._take_failure(rank, frame)
        else:
            kind = type(frame).__name__
            self.fail(f"{self._name(rank)} said {kind} out of turn")

    def _take_failure(self, rank: int, frame: frames.Failed) -> None:
        self._attendance.note_failed(rank)
        failure = f"{self._name(rank)} failed: {frame.message}"
        if frame.message == frame.kind:  # no error of ours: a sum's, most likely
            self._blame(failure)
        else:
            self.fail(failure)

    def _lose(self, rank: int, reason: str) -> None:
        if self._is_over or self._attendance.has_failed(rank):
            return
        process = self._processes.get(rank)
        if process is not None and reason == "ended":
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(_EXIT_S)
                reason = f"ended ({exit_in_words(status)})"
        self.fail(f"{self._name(rank)} {reason}")

    def _name(self, rank: int) -> str:
        count = len(self._links) + 1
        return f"rank {rank} of {count} at {self._links[rank - 1].peer}"


def joined_mark(link: RankLink, rank: int, ranks: int) -> str:
    """The mark of the model that a rank has. Raises the error that it met."""
    try:
        frame = link.receive()
    except (FrameError, OSError) as error:
        raise EngineError(f"rank {rank} of {ranks} was lost: {error}") from error
    if isinstance(frame, frames.Joined):
        return frame.model_mark
    if isinstance(frame, frames.Failed):
        raise error_of(frame.kind, f"rank {rank} of {ranks}: {frame.message}", None)
    raise EngineError(
        f"rank {rank} of {ranks} at {link.peer} ended before it had joined; "
        "its last line there says why"
    )


def exit_in_words(status: int) -> str:
    """An exit status as people know it."""
    if status < 0:
        return f"signal {-status}"
    return f"exit status {status}"
