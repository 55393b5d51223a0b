"""onnxruntime: whether it is here, and how its sessions are set up."""

from __future__ import annotations

import functools
import os
from typing import Any

_OLDEST = (1, 20)  # MatMulNBits with 8 bits and a bias
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


def open_session(model: bytes) -> Any:
    """An `InferenceSession` over a model's bytes, which are not needed afterwards."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads()
    options.log_severity_level = 3  # errors: it warns of every constant that it folds
    # Idle threads that spin would take a core from whatever else runs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The C heap keeps freed blocks already; an arena in each session would keep its largest call.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    return onnxruntime.InferenceSession(
        model, options, providers=["CPUExecutionProvider"]
    )
