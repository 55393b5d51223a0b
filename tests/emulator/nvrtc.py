"""Compiles the CUDA texts for a GPU that is not there, by NVIDIA's run-time compiler.

It needs the packages `nvidia-cuda-nvrtc` and `nvidia-cuda-runtime` (13), whose folders
may also be named by RVLLM_NVRTC. MLX's headers are left out: they take four fifths of
the time, and a text uses nothing of them but the types of shapes and strides.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rvllm_local.metal_kernels.launch import Dispatch
from tests.emulator.capture import CUDA_TYPES

ARCHITECTURE = "sm_90a"
_PRELUDE = """
#include <cuda_bf16.h>
#include <cuda_fp16.h>
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
template <typename T>
struct numbers {
  T held[10];
  __device__ T operator[](int axis) const { return held[axis]; }
};
typedef numbers<int32_t> Shape;
typedef numbers<int64_t> Strides;
"""


@dataclass(frozen=True, slots=True)
class Compiler:
    """NVIDIA's compiler as a library, and the folder of CUDA's headers."""

    library: ctypes.CDLL
    headers: Path

    def errors(self, text: str) -> str | None:
        """What the compiler says against the text; None if it compiles."""
        program = ctypes.c_void_p()
        created = self.library.nvrtcCreateProgram(
            ctypes.byref(program), text.encode(), b"text.cu", 0, None, None
        )
        assert created == 0, f"NVRTC gave {created}"
        options = [
            f"--gpu-architecture={ARCHITECTURE}",
            f"--include-path={self.headers}",
            f"--include-path={self.headers / 'cccl'}",
            "--device-as-default-execution-space",
            "--disable-warnings",
        ]
        encoded = [option.encode() for option in options]
        given = (ctypes.c_char_p * len(encoded))(*encoded)
        failed = self.library.nvrtcCompileProgram(program, len(encoded), given)
        said = self._log(program)
        self.library.nvrtcDestroyProgram(ctypes.byref(program))
        return said if failed else None

    def _log(self, program: ctypes.c_void_p) -> str:
        size = ctypes.c_size_t()
        self.library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        self.library.nvrtcGetProgramLog(program, log)
        return log.value.decode()


def find_compiler() -> Compiler | None:
    """The compiler, if its packages are installed."""
    for folder in _folders():
        libraries = sorted(folder.glob("lib/libnvrtc.so.*"))
        headers = folder / "include"
        if not libraries or not (headers / "cuda_fp16.h").exists():
            continue
        for builtins in folder.glob("lib/libnvrtc-builtins.so.*"):
            ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
        return Compiler(ctypes.CDLL(str(libraries[0])), headers)
    return None


def _folders() -> Iterator[Path]:
    named = os.environ.get("RVLLM_NVRTC")
    if named:
        yield Path(named)
    packages = importlib.util.find_spec("nvidia")
    if packages is not None:
        for folder in packages.submodule_search_locations or ():
            yield Path(folder) / "cu13"


def whole_text(dispatch: Dispatch) -> str:
    """The dispatch's text with the signature that MLX writes."""
    kernel = dispatch.kernel
    parameters = []
    for name, array in zip(kernel.inputs, dispatch.inputs, strict=True):
        parameters.append(f"const {CUDA_TYPES[array.dtype]}* {name}")
        for what in ("Shape", "Strides"):
            argument = f"{name}_{what.lower()}"
            if argument in kernel.body:
                parameters.append(f"const __grid_constant__ {what} {argument}")
    for name, dtype in zip(kernel.outputs, dispatch.dtypes, strict=True):
        parameters.append(f"{CUDA_TYPES[dtype]}* {name}")
    signature = f"__global__ void {kernel.name}({', '.join(parameters)})"
    return f"{_PRELUDE}{kernel.header}\n{signature} {{\n{kernel.body}\n}}\n"
