"""The complete Metal text of a dispatch, exactly what a Mac would compile.

MLX prints it while `mx.export_function` traces a kernel call with `verbose=True`, Metal or not.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx

from rvllm_local.metal_kernels.compact import compact
from rvllm_local.metal_kernels.launch import Dispatch, MLXLauncher, source

CUDA_TYPES = {
    mx.float32: "float", mx.float16: "__half", mx.bfloat16: "__nv_bfloat16", mx.int8: "int8_t", mx.int32: "int32_t",
    mx.uint8: "uint8_t", mx.uint32: "uint32_t",
}  # fmt: skip
_CUDA_IDS = (
    "threadgroup_position_in_grid",
    "threadgroups_per_grid",
    "thread_position_in_threadgroup",
)
# Standard output belongs to the process: one thread at a time may lead it away.
_STANDARD_OUTPUT = threading.Lock()


def capture_text(dispatch: Dispatch) -> str:
    """The generated text of one dispatch; its inputs are traced, never evaluated."""
    launcher = MLXLauncher(verbose=True)

    def call(*inputs: mx.array) -> list[mx.array]:
        return list(launcher(Dispatch(dispatch.kernel, inputs, *_launch_of(dispatch))))

    return trace(call, dispatch.inputs)


def cuda_text(dispatch: Dispatch) -> str:
    """A CUDA dispatch's text in the form of a Metal one: MLX traces none without CUDA, so its parameters are put here.

    The instructions of `ptx.h` are left out: the shim defines them.
    """
    kernel, lines = dispatch.kernel, []
    for name, array in zip(kernel.inputs, dispatch.inputs, strict=True):
        lines.append(f"const {CUDA_TYPES[array.dtype]}* {name}")
        if f"{name}_strides" in kernel.body:
            lines.append(f"const int64_t* {name}_strides")
        if f"{name}_shape" in kernel.body:
            lines.append(f"const int32_t* {name}_shape")
    lines += [
        f"{CUDA_TYPES[dtype]}* {name}"
        for name, dtype in zip(kernel.outputs, dispatch.dtypes, strict=True)
    ]
    lines = [f"{line} [[buffer({place})]]" for place, line in enumerate(lines)]
    lines += [f"uint3 {name} [[{name}]]" for name in _CUDA_IDS]
    header = kernel.header.replace(
        compact(source("ptx.h"), kernel.macros), '#include "cuda_matrix_shim.h"\n'
    )
    return f'#include "cuda_shim.h"\n{header}\n[[kernel]] void {kernel.name}({", ".join(lines)}) {{\n{kernel.body}\n}}\n'


def trace(call: Callable[..., object], inputs: Sequence[mx.array]) -> str:
    """What MLX prints while tracing `call(*inputs)`: the text between the fences."""
    with (
        _STANDARD_OUTPUT,
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryFile() as sink,
    ):
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
        raise AssertionError(
            f"MLX printed no kernel text while tracing: {printed[:200]!r}"
        )
    return match.group(1)


def _launch_of(
    dispatch: Dispatch,
) -> tuple[
    tuple[int, int, int],
    tuple[int, int, int],
    tuple[tuple[int, ...], ...],
    tuple[mx.Dtype, ...],
]:
    return dispatch.grid, dispatch.threadgroup, dispatch.shapes, dispatch.dtypes
