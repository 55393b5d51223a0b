"""The complete Metal text of a dispatch, exactly what a Mac would compile.

MLX prints it while `mx.export_function` traces a kernel call with `verbose=True`, Metal or not.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx

from rvllm_local.metal_kernels.launch import Dispatch, MLXLauncher


def capture_text(dispatch: Dispatch) -> str:
    """The generated text of one dispatch; its inputs are traced, never evaluated."""
    launcher = MLXLauncher(verbose=True)

    def call(*inputs: mx.array) -> list[mx.array]:
        return list(launcher(Dispatch(dispatch.kernel, inputs, *_launch_of(dispatch))))

    return trace(call, dispatch.inputs)


def trace(call: Callable[..., object], inputs: Sequence[mx.array]) -> str:
    """What MLX prints while tracing `call(*inputs)`: the text between the fences."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as sink:
        sys.stdout.flush()
        saved = os.dup(1)
        os.dup2(sink.fileno(), 1)
        try:
            mx.export_function(str(Path(folder) / "traced.mlxfn"), call, *inputs)
        finally:
            os.dup2(saved, 1)
            os.close(saved)
        sink.seek(0)
        printed = sink.read().decode()
    match = re.search(r"```\n(.*?)\n?```", printed, re.DOTALL)
    if match is None:
        raise AssertionError(f"MLX printed no kernel text while tracing: {printed[:200]!r}")
    return match.group(1)


def _launch_of(
    dispatch: Dispatch,
) -> tuple[tuple[int, int, int], tuple[int, int, int], tuple[tuple[int, ...], ...], tuple[mx.Dtype, ...]]:
    return dispatch.grid, dispatch.threadgroup, dispatch.shapes, dispatch.dtypes
