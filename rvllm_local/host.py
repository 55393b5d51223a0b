"""Prepares the process for MLX: a real BLAS on Linux, the C allocator, MLX's command-buffer sizes.

Must run before MLX is imported, and therefore imports nothing of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

_NICENESS = 19

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = (
    -1,
    -2,
    -3,
    -8,
)  # mallopt(3)
_PIECE = 8 * 2**20  # below the size that malloc maps separately
_MOST_RESERVED = 448 * 2**20  # below the size at which free memory is trimmed
_PR_SET_PDEATHSIG = 1
_OPENBLAS = "libopenblas.so.0"
# What MLX reads from the environment when it first uses a device; who set one of them keeps it.
MLX_SETTINGS = {
    # A bound arena counts with all its elements, which would force a commit for nearly every operation.
    "MLX_MAX_MB_PER_BUFFER": "100000000",
    # The device begins when so many operations are encoded, so that a step that it waits for takes longer with more;
    # and a buffer's temporary arrays are only freed when it is done. Fewer take the host longer.
    "MLX_MAX_OPS_PER_BUFFER": "50",
    # Float32 means float32, not products of 10-bit mantissas: a model in it is held against a reference to 1 in 1000.
    "MLX_ENABLE_TF32": "0",
}


@dataclass(frozen=True, slots=True)
class HostReport:
    """What was found. `advice` says how to mend a slow BLAS, and is None when there is nothing to mend."""

    blas: str
    is_fast_blas: bool
    advice: str | None = None


@functools.cache
def prepare() -> HostReport:
    """Prepare this process once; later calls return the first report."""
    for name, value in MLX_SETTINGS.items():
        os.environ.setdefault(name, value)
    # Texts are tokenized one by one: threads would do nothing but warn at every fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if sys.platform == "darwin":
        return HostReport("Accelerate", is_fast_blas=True)
    _keep_large_blocks()
    return _load_openblas()


def _keep_large_blocks() -> None:
    """Keep freed large blocks in the process: returning them costs a page fault for each page of each step."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return
    mallopt(
        _M_ARENA_MAX, 1
    )  # other threads' heaps are trimmed at each free, whatever the threshold
    mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
    mallopt(_M_TRIM_THRESHOLD, 512 * 2**20)
    mallopt(_M_TOP_PAD, 64 * 2**20)


def reserve_heap(nbytes: int) -> None:
    """Take `nbytes` of the C heap, touch them and give them back: later temporary arrays find them there.

    So the process has its planned size from the start, and does not grow while it serves.
    """
    pieces = [bytearray(_PIECE) for _ in range(min(nbytes, _MOST_RESERVED) // _PIECE)]
    for piece in pieces:
        ctypes.memset((ctypes.c_char * len(piece)).from_buffer(piece), 1, len(piece))
    try:
        ctypes.CDLL(None).mallopt(
            _M_TOP_PAD, _PIECE
        )  # from now on the heap need not grow in large steps
    except (OSError, AttributeError):  # not glibc
        return


def trim_heap() -> None:
    """Give the C heap's free memory back to the system: loading takes more than serving."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):  # not glibc
        return


def may_have_gpu() -> bool:
    """True where MLX may find a GPU. It is not asked: that would load it."""
    return sys.platform == "darwin" or Path("/dev/nvidiactl").exists()


def step_back() -> None:
    """Let this process's work wait for that of others, on the processors."""
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)


def run_last() -> None:
    """Give this process only the processors that others of its session leave.

    Linux takes them back as soon as another thread wakes. Elsewhere it steps back.
    """
    step_back()
    if sys.platform != "linux":
        return
    for task in Path("/proc/self/task").iterdir():  # a class is each thread's own
        with contextlib.suppress(OSError):
            os.sched_setscheduler(int(task.name), os.SCHED_IDLE, os.sched_param(0))


def runs_last() -> bool:
    """True where the kernel gives this thread only what others leave."""
    if sys.platform != "linux":
        return False
    return os.sched_getscheduler(0) == os.SCHED_IDLE


def end_with_parent(parent: int) -> None:
    """Have the kernel end this process with the thread of `parent` that started it.

    Where it cannot, the end of a connection to the parent has to tell.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _load_openblas() -> HostReport:
    late = "mlx.core" in sys.modules
    preferred = os.environ.get("RVLLM_BLAS")
    for path in _candidates():
        if not _load(path):
            continue
        if late:
            return HostReport(
                "reference BLAS",
                is_fast_blas=False,
                advice="MLX was imported before rvllm_local could load OpenBLAS; import rvllm_local first",
            )
        missed = f"RVLLM_BLAS={preferred} is no library with cblas_sgemm; using {path} instead"
        return HostReport(
            f"OpenBLAS ({path})",
            is_fast_blas=True,
            advice=missed if preferred not in (None, "", path) else None,
        )
    return HostReport(
        "reference BLAS",
        is_fast_blas=False,
        advice="no OpenBLAS was found, so prompts run about 20 times slower (15 instead of 300 tokens/s); install "
        "libopenblas0-pthread, or run `make openblas`, or set RVLLM_BLAS to a libopenblas.so.0",
    )


def _load(path: str) -> bool:
    """Load a BLAS for all later libraries; one without the symbols that MLX calls stays private."""
    try:
        if not hasattr(ctypes.CDLL(path), "cblas_sgemm"):
            return False
        ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


def _candidates() -> list[str]:
    built = Path(sys.prefix, "lib", "rvllm", _OPENBLAS)
    return [
        path for path in (os.environ.get("RVLLM_BLAS"), _OPENBLAS, str(built)) if path
    ]
