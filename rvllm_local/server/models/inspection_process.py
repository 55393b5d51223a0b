"""The process that inspects models' files: `python -m ...inspection_process FD PARENT`.

A configuration or a header is the model's, and may take long or much to read. What
explodes ends this process alone, by the kernel's limits.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
import time

from rvllm_local import host
from rvllm_local.conversation import prompt_frames as frames
from rvllm_local.conversation.prompt_frames import Refused
from rvllm_local.engine.startup.open import plan_files
from rvllm_local.errors import ModelFileError, RvllmError
from rvllm_local.forked_work import limit_memory, limit_time
from rvllm_local.framing import decode
from rvllm_local.models.own_sampling import own_sampling
from rvllm_local.server.helper_process import receive_frame
from rvllm_local.server.models.context import context_of
from rvllm_local.server.models.facts import model_facts
from rvllm_local.server.models.inspection_frames import (
    IDLE_S,
    INSPECT,
    Inspect,
    Inspected,
    Planned,
)

_MOST_CPU_S = 0.5  # after a model that took longer the process may have grown


def main() -> None:
    """Read what frames ask for, until nobody has asked for a while."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's is the parent's
    host.end_with_parent(int(sys.argv[2]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.settimeout(IDLE_S)
    used_s = 0.0
    while used_s < _MOST_CPU_S:
        try:
            body = receive_frame(connection)
        except OSError:  # it is too late, or the parent has gone
            break
        began = time.process_time()
        inspect = decode(body, INSPECT)
        connection.sendall(_answer(inspect))
        used_s = time.process_time() - began
    os._exit(0)


def _answer(inspect: Inspect) -> bytes:
    """The frame of the answer, made within limits."""
    limit_memory(inspect.num_bytes)
    limit_time(inspect.cpu_s, inspect.wall_s)
    try:
        answer = frames.encode(_read(inspect))
    except RvllmError as error:
        answer = frames.encode(Inspected(refused=Refused.of(error)))
    except Exception as error:
        kind = type(error).__name__
        words = f"{inspect.name}: reading its configuration failed with {kind}"
        answer = frames.encode(Inspected(refused=Refused.of(ModelFileError(words))))
    limit_time(0, 0)
    return answer


def _read(inspect: Inspect) -> Inspected:
    if inspect.what == "context_length":
        length = context_of(inspect.files, inspect.options)
        return Inspected(context_length=length)
    if inspect.what == "facts":
        return Inspected(facts=model_facts(inspect.files))
    plan = plan_files(inspect.files, inspect.options)
    plan.check()
    sampling = own_sampling(inspect.files)
    return Inspected(Planned(plan.total, plan.budget, sampling))


if __name__ == "__main__":
    main()
