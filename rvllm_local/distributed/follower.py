"""A rank's process: `python -m rvllm_local.distributed.follower`, invited over stdin.

Makes rank 0's calls until rank 0 ends or falls silent, and ends then.
"""

from __future__ import annotations

import faulthandler
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import structs

from rvllm_local import host
from rvllm_local.distributed import frames
from rvllm_local.distributed.invitation import Invitation, read_invitation
from rvllm_local.distributed.joining import join, told_job
from rvllm_local.errors import EngineError, RvllmError
from rvllm_local.framing import FrameError

if TYPE_CHECKING:
    from rvllm_local.engine.startup.open_part import ModelPart
    from rvllm_local.memory.disk_cache import BlockStore
    from rvllm_local.models.locate import ModelFiles
    from rvllm_local.options import EngineOptions

REFUSED = 64  # exit status: trying again changes nothing
_OVER, _FAILED = 0, 70
_CLOSE_S = 10.0  # in which blocks that were spilled can be written to disk


def main() -> int:
    """Serve one job as one of its ranks. Returns the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    invitation = read_invitation()
    host.end_with_parent(invitation.parent)
    faulthandler.enable()
    host.prepare()
    follower = _Follower(invitation)
    try:
        follower.serve()
    except (RvllmError, FrameError, MemoryError) as error:
        follower.say(str(error))
        return REFUSED
    except Exception as error:
        follower.say(f"failed with {type(error).__name__}")
        return _FAILED
    return _OVER


class _Follower:
    """One rank, from its first word to rank 0 to the end of the job."""

    def __init__(self, invitation: Invitation) -> None:
        self._invitation = invitation
        self._cache_dir: Path | None = None
        if invitation.cache_dir is not None:
            self._cache_dir = Path(invitation.cache_dir)
        self._frames: queue.SimpleQueue[frames.FromLeader] = queue.SimpleQueue()
        self._has_served = False
        self._keeps_blocks = False
        self._is_closing = False

    def say(self, message: str) -> None:
        """Write one line about this rank to stderr."""
        rank = self._invitation.rank
        sys.stderr.write(f"rank {rank} of {self._invitation.ranks}: {message}\n")
        sys.stderr.flush()

    def serve(self) -> None:
        """Join, and do what the job asks. Raises what joining and loading raise."""
        self._link = join(self._invitation, self.say)
        job = told_job(self._link)
        if job is None:  # another rank's fault, or the end of a job that never began
            self.say("rank 0 ended before all ranks were there; it says why")
            return
        if job.options is None:
            self._measure(job)
            return
        options = structs.replace(job.options, cache_dir=self._invitation.cache_dir)
        files = self._prepared(options, job)
        self._listen(job)
        if isinstance(self._frames.get(), frames.Go):
            self._serve_part(files, options, job)

    def _measure(self, job: frames.Job) -> None:
        from rvllm_local.distributed.agreement import model_mark
        from rvllm_local.distributed.backends import check_backend
        from rvllm_local.distributed.measuring import measure
        from rvllm_local.distributed.meeting import form_group
        from rvllm_local.models.locate import locate

        try:
            check_backend(job.meeting.backend)
            files = locate(self._invitation.model, self.say, cache_dir=self._cache_dir)
        except RvllmError as error:
            self._tell_failure(error)
            raise
        self._link.send(frames.Joined(model_mark(files)))
        self._listen(job)
        if isinstance(self._frames.get(), frames.Go):
            measure(form_group(job.meeting, self._invitation.rank))
            self._frames.get()  # the end

    def _prepared(self, options: EngineOptions, job: frames.Job) -> ModelFiles:
        """This machine's files of the model; rank 0 is told that they fit, or why not."""
        from rvllm_local.distributed.agreement import model_mark
        from rvllm_local.distributed.backends import check_backend
        from rvllm_local.engine.startup.open_part import plan_part
        from rvllm_local.models.locate import locate

        model = self._invitation.model
        try:
            check_backend(job.meeting.backend)
            files = locate(model, self.say, cache_dir=self._cache_dir)
            plan_part(files, options, self._invitation.rank)
        except (RvllmError, MemoryError) as error:
            self._tell_failure(error)
            raise
        self._link.send(frames.Joined(model_mark(files)))
        return files

    def _serve_part(
        self, files: ModelFiles, options: EngineOptions, job: frames.Job
    ) -> None:
        from rvllm_local.distributed.meeting import form_group
        from rvllm_local.engine.startup.open_part import open_part

        try:
            group = form_group(job.meeting, self._invitation.rank)
            part = open_part(files, options, group)
            self._run_calls(part, part.open_store(options))
        except Exception as error:
            self._tell_failure(error)
            raise

    def _run_calls(self, part: ModelPart, store: BlockStore | None) -> None:
        """Make rank 0's calls, one after the other, until it ends."""
        from rvllm_local.distributed.part_server import PartServer, ready_frame
        from rvllm_local.memory.swap import SwapSpace

        server = PartServer(part.runner, SwapSpace(self._cache_dir), store)
        self._keeps_blocks = store is not None
        self._link.send(ready_frame(part))
        while True:
            frame = self._frames.get()
            if isinstance(frame, frames.Serving):
                self._link.be_strict()
            elif isinstance(frame, frames.Call):
                verdict = server.run(frame)
                if verdict is not None:
                    self._link.send(verdict)
            elif isinstance(frame, frames.Close):
                server.close()
                os._exit(_OVER)
            else:
                raise EngineError(f"rank 0 said {type(frame).__name__} out of turn")

    def _tell_failure(self, error: BaseException) -> None:
        """The text of an error that is not the project's own could quote a prompt."""
        kind = type(error).__name__
        words = kind
        if isinstance(error, RvllmError | MemoryError):
            words = str(error)
        self._link.send(frames.Failed(kind, words))

    def _listen(self, job: frames.Job) -> None:
        self._link.start(self._take, self._end, job.pid or None)

    def _take(self, frame: frames.FromLeader) -> None:
        if isinstance(frame, frames.RollCall):  # even where a sum waits for others
            self._link.send(frames.Present(frame.number))
            return
        if isinstance(frame, frames.Close):
            if not self._keeps_blocks:
                os._exit(_OVER)
            self._is_closing = True  # from here on rank 0's end is none of ours
            threading.Timer(_CLOSE_S, os._exit, [_OVER]).start()
        if isinstance(frame, frames.Failed):  # before the connection's end is heard of
            self.say(frame.message)
            os._exit(REFUSED)
        if isinstance(frame, frames.Serving):
            self._has_served = True
        self._frames.put(frame)

    def _end(self, reason: str) -> None:
        """Rank 0 has gone: end at once, even out of a sum that waits for the others."""
        if self._is_closing:
            return
        if reason == "ended":
            if not self._has_served:
                self.say("rank 0 ended before it served; it says why")
            os._exit(_OVER)
        self.say(f"rank 0 at {self._link.peer} {reason}")
        os._exit(_FAILED)


if __name__ == "__main__":
    sys.exit(main())
