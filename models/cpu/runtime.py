"""onnxruntime: whether it is here, and how its sessions are set up."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from typing import Any

from rvllm_local.models.cpu.onnx_file import GraphWriter, Piece

_OLDEST = (1, 20)  # MatMulNBits with 8 bits and a bias
# How long an idle thread looks for work, in microseconds. On two cores of a quiet machine
# a step of one row took 18.7 ms without, 16.6 with 50 and 16.5 with 200; one of eight
# rows 46.6, 40.8 and 41.1 (`benchmarks/cpu_step.py`).
SPIN_US = 50
_ADVICE = (
    "a quantized model's weights are widened to float32, which takes about six times "
    "the memory and the time; install onnxruntime>=1.20"
)


@functools.cache
def missing_runtime() -> str | None:
    """Why onnxruntime cannot be used, what that costs and how to mend it; None if it can."""
    try:
        import onnxruntime
    except ImportError as error:
        return f"onnxruntime cannot be imported ({error}): {_ADVICE}"
    version = str(onnxruntime.__version__)
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < _OLDEST:
        return f"onnxruntime {version} is too old: {_ADVICE}"
    return None


def num_threads() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def open_session(model: Sequence[Piece]) -> Any:
    """An `InferenceSession` over a model, which is not needed afterwards."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads()
    options.log_severity_level = 3  # errors: it warns of every constant that it folds
    # Graphs are written as they are to run. Looking for improvements took a seventh of
    # the time that a session takes to be made, and found none.
    options.graph_optimization_level = (
        onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    )
    _set_spinning(options)
    _share_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")
    # Patterns are kept for each shape, and shapes change with every context.
    options.enable_mem_pattern = False
    providers = ["CPUExecutionProvider"]
    if not hasattr(os, "memfd_create"):
        joined = b"".join(model)
        return onnxruntime.InferenceSession(joined, options, providers=providers)
    # A session keeps the bytes that it was made of, as large as its weights. Of a file it
    # keeps the name.
    with os.fdopen(os.memfd_create("model"), "wb") as file:
        file.writelines(model)
        file.flush()
        path = f"/proc/self/fd/{file.fileno()}"
        return onnxruntime.InferenceSession(path, options, providers=providers)


class SessionOpener:
    """Makes sessions on threads of its own, while the next graph is written.

    While a session is made its weights exist thrice: those of `most_bytes` are made at a
    time, or a single one.
    """

    def __init__(self, executor: Executor, most_bytes: int) -> None:
        self._executor = executor
        self._most_bytes = most_bytes
        self._pending: list[tuple[Future[Any], int]] = []

    def open(self, writer: GraphWriter) -> Future[Any]:
        """The `InferenceSession` over a graph, to come."""
        nbytes = writer.nbytes
        while self._pending and self._pending_bytes() + nbytes > self._most_bytes:
            oldest, _ = self._pending.pop(0)
            oldest.result()
        session = self._executor.submit(open_session, writer.model())
        self._pending.append((session, nbytes))
        return session

    def _pending_bytes(self) -> int:
        return sum(nbytes for _, nbytes in self._pending)


def _set_spinning(options: Any) -> None:
    """How long an idle thread looks for work before it sleeps.

    Threads that spin for ever would take a core from whatever else runs. A step has some
    hundred products, and a thread that sleeps between them is woken for each.
    """
    setting = "session.intra_op.allow_spinning"
    if not SPIN_US:
        options.add_session_config_entry(setting, "0")
        return
    options.add_session_config_entry(setting, "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
    options.add_session_config_entry("session.force_spinning_stop", "1")


@functools.cache
def _share_arena() -> None:
    """One arena of temporaries for all sessions, which grows by what is asked of it.

    Aligned blocks of many sizes fragment the C heap: a chunk of 512 tokens that needs
    25 MB at once took 520 MB of it (smollm2-135m, glibc). The arena keeps what the
    largest call took, some 40 MB there.
    """
    import onnxruntime

    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    memory = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
    as_requested = {
        "max_mem": 0,
        "arena_extend_strategy": 1,
        "initial_chunk_size_bytes": 1 << 20,
        "max_dead_bytes_per_chunk": 1 << 20,
    }
    onnxruntime.create_and_register_allocator(
        memory, onnxruntime.OrtArenaCfg(as_requested)
    )
