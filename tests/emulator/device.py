"""Compiles captured Metal text with the system's C++ compiler and runs it in a process of its own.

A text becomes a library that the emulator's program opens. Both are cached by content in the
user's temporary folder. Knows nothing of attention.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from rvllm_local.metal_kernels.launch import Dispatch
from tests.emulator.capture import capture_text, cuda_text
from tests.support.installed import put_in_place

Array = npt.NDArray[np.generic]
SHIM = Path(__file__).with_name("metal_shim.h")
RUNTIME = Path(__file__).with_name("runtime.cpp")
CACHE = Path(tempfile.gettempdir()) / f"rvllm-kernel-emulator-{os.getuid()}"
FLAGS = ("-std=c++17", "-fPIC", "-fno-strict-aliasing", "-ffp-contract=off", "-w")
# A text runs for milliseconds, and to optimize it would take longer than that. What it calls
# lies in the program, but for conversions of half floats, which come from the archive.
LIBRARY = ("-shared", "-nostdlib", "-lgcc", "-lm")
PROGRAM = ("-O1", "-rdynamic", "-ldl")
WRITERS = {
    "kv_write": ("arena", "scales"), "kv_copy": ("arena", "scales"), "kv_load": ("arena", "scales"),
    "paged_decode": ("arena", "scales", "scratch"), "latent_decode": ("arena", "scales", "scratch"),
}  # fmt: skip
_BITS = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32}
_IDS = {
    "thread_position_in_grid": "ids.in_grid",
    "thread_position_in_threadgroup": "ids.in_group",
    "threadgroup_position_in_grid": "ids.group",
    "threadgroups_per_grid": "ids.groups",
    "threads_per_threadgroup": "ids.group_size",
    "threads_per_grid": "ids.grid",
    "thread_index_in_simdgroup": "index % 32",
    "simdgroup_index_in_threadgroup": "index / 32",
    "thread_index_in_threadgroup": "index",
}
_ENTRY = (
    'namespace emulator {{ extern "C" void emulator_entry(const Ids& ids, uint index) '
    "{{ {call}; }} }}\n"
)


class EmulatorError(Exception):
    """The kernel broke a rule: out of bounds, a divergent barrier, too much threadgroup memory."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of the generated kernel: its C type, and its buffer or None for a thread attribute."""

    name: str
    ctype: str
    buffer: int | None


def parameters(text: str) -> list[Parameter]:
    """The generated kernel's parameters in order."""
    signature = re.search(r"\[\[kernel\]\] void (\w+)\((.*?)\)\s*\{", text, re.DOTALL)
    if signature is None:
        raise AssertionError("the captured text has no kernel")
    found = []
    for ctype, name, attribute in re.findall(
        r"([\w\s*&]+?)\s*(\w+)\s*\[\[(.+?)\]\]", signature.group(2)
    ):
        index = re.match(r"buffer\((\d+)\)", attribute)
        found.append(
            Parameter(name, ctype.strip(), int(index.group(1)) if index else None)
        )
    return found


def compile_text(text: str) -> list[Path]:
    """The program and the library for `text`, from the cache where they are known."""
    runtime = RUNTIME.read_text(encoding="utf-8")
    return [_compiled(runtime, PROGRAM), _compiled(_translation_unit(text), LIBRARY)]


def _compiled(source: str, more: tuple[str, ...]) -> Path:
    """What the compiler makes of a source; kept by its content and that of the shims."""
    shims = [path.read_bytes() for path in sorted(SHIM.parent.glob("*.h"))]
    arguments = [argument.encode() for argument in (*FLAGS, *more)]
    key = hashlib.sha256(b"\0".join([source.encode(), *shims, *arguments]))
    CACHE.mkdir(mode=0o700, exist_ok=True)
    target = CACHE / key.hexdigest()[:32]
    if target.exists():
        return target
    shim = _precompiled_shim()
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        unit = Path(folder) / "unit.cpp"
        unit.write_text(source, encoding="utf-8")
        output = unit.with_name("made")
        arguments = [str(unit), *more, "-o", str(output)]
        try:
            _run_compiler("-include", str(shim), *arguments)
        except EmulatorError:
            # A precompiled header can fail by itself, where its addresses are taken.
            _run_compiler("-include", str(SHIM), *arguments)
        output.replace(target)
    return target


def _precompiled_shim() -> Path:
    """The shim with its precompiled form beside it: half the time of a small text."""
    key = hashlib.sha256(SHIM.read_bytes() + " ".join(FLAGS).encode())
    target = CACHE / f"shim-{key.hexdigest()[:32]}"
    if not target.is_dir():
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            made = Path(folder) / "made"
            made.mkdir()
            shim = made / SHIM.name
            shutil.copy2(SHIM, shim)
            _run_compiler("-x", "c++-header", str(shim), "-o", f"{shim}.gch")
            put_in_place(made, target)
    return target / SHIM.name


def _run_compiler(*arguments: str) -> None:
    command = ["g++", *FLAGS, "-I", str(SHIM.parent), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EmulatorError(f"the text does not compile:\n{done.stderr[:4000]}")


def _translation_unit(text: str) -> str:
    name = re.findall(r"\[\[kernel\]\] void (\w+)\(", text)[0]
    counter = iter(range(64))

    def declare(match: re.Match[str]) -> str:
        ctype, array, extent = match.groups()
        return (
            f"{ctype} (&{array})[{extent}] = *({ctype} (*)[{extent}])"
            f"emulator::shared_array(sizeof({ctype}) * ({extent}), {next(counter)});"
        )

    arguments = []
    for p in parameters(text):
        if p.buffer is None:
            arguments.append(_IDS[p.name])
        else:
            pointer = p.ctype.replace("&", "").replace("*", "").strip() + "*"
            arguments.append(
                f"{'*' if '&' in p.ctype else ''}({pointer})buffers[{p.buffer}]"
            )
    text = re.sub(
        r"\b(?:threadgroup|RV_SHARED)\s+(\w+)\s+(\w+)\[([^\]]+)\];", declare, text
    )
    return text + _ENTRY.format(call=f"{name}({', '.join(arguments)})")


def run_text(
    text: str,
    buffers: Sequence[Array | int],
    grid: tuple[int, int, int],
    threadgroup: tuple[int, int, int],
    seed: int = 0,
) -> list[bytes]:
    """Runs the text; every buffer's bytes afterwards. An int stands for an output of so many bytes, poisoned."""
    command = compile_text(text)
    with tempfile.TemporaryDirectory(
        dir="/dev/shm" if Path("/dev/shm").is_dir() else None
    ) as folder:
        given, result = Path(folder) / "in", Path(folder) / "out"
        sizes = [b if isinstance(b, int) else b.nbytes for b in buffers]
        with given.open("wb") as file:
            file.write(struct.pack("<8i", *grid, *threadgroup, seed, len(buffers)))
            for buffer, size in zip(buffers, sizes, strict=True):
                file.write(
                    struct.pack("<2q", size, 0 if isinstance(buffer, int) else 1)
                )
                if not isinstance(buffer, int):
                    file.write(np.ascontiguousarray(buffer).tobytes())
        done = subprocess.run(
            [*command, given, result],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if done.returncode:
            raise EmulatorError(
                done.stderr.strip() or f"the kernel ended with status {done.returncode}"
            )
        whole = result.read_bytes()
    ends = np.cumsum(sizes)
    return [whole[end - size : end] for end, size in zip(ends, sizes, strict=True)]


class Emulator:
    """A launcher for `KernelSet` that runs each dispatch in the emulator and writes in-place results back."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.dispatches: list[Dispatch] = []
        self._texts: dict[tuple[object, ...], str] = {}

    def text(self, dispatch: Dispatch) -> str:
        key = (dispatch.kernel.name, *(a.size < 8 for a in dispatch.inputs))
        if key not in self._texts:
            read = cuda_text if dispatch.kernel.backend == "cuda" else capture_text
            self._texts[key] = read(dispatch)
        return self._texts[key]

    def __call__(self, dispatch: Dispatch) -> list[mx.array]:
        self.dispatches.append(dispatch)
        text = self.text(dispatch)
        mx.eval(*dispatch.inputs)
        views = {
            n: bits_of(a)
            for n, a in zip(dispatch.kernel.inputs, dispatch.inputs, strict=True)
        }
        dense = {name: _dense(view) for name, view in views.items()}
        outputs = dict(
            zip(
                dispatch.kernel.outputs,
                zip(dispatch.shapes, dispatch.dtypes, strict=True),
                strict=True,
            )
        )
        params = [p for p in parameters(text) if p.buffer is not None]
        buffers = [_buffer(p.name, views, dense, outputs) for p in params]
        results = run_text(
            text, buffers, dispatch.grid, dispatch.threadgroup, self.seed
        )
        by_name = dict(zip((p.name for p in params), results, strict=True))
        for name, view in views.items():
            after = np.frombuffer(by_name[name], view.dtype).reshape(dense[name].shape)
            if name in WRITERS.get(dispatch.kernel.kind, ()):
                view[...] = after
            elif not np.array_equal(after, dense[name]):
                raise EmulatorError(f"{dispatch.kernel.kind} wrote to its input {name}")
        return [
            _array(by_name[name], shape, dtype)
            for name, (shape, dtype) in outputs.items()
        ]


def bits_of(array: mx.array) -> Array:
    """A writable numpy view of an evaluated array's memory, as unsigned integers of its width."""
    return np.array(array.view(_BITS[array.dtype.size]), copy=False)


def _order(view: Array) -> list[int]:
    return sorted(range(view.ndim), key=lambda axis: (-view.strides[axis], axis))


def _dense(view: Array) -> Array:
    """The same elements without gaps, in the memory order that the strides describe."""
    return np.ascontiguousarray(view.transpose(_order(view)))


def _buffer(
    name: str,
    views: dict[str, Array],
    dense: dict[str, Array],
    outputs: dict[str, tuple[tuple[int, ...], mx.Dtype]],
) -> Array | int:
    if name in dense:
        return dense[name]
    if name in outputs:
        shape, dtype = outputs[name]
        return int(np.prod(shape)) * dtype.size
    base, _, what = name.rpartition("_")
    view = views[base]
    if what == "shape":
        return np.array(view.shape, np.int32)
    if what == "ndim":
        return np.array([view.ndim], np.int32)
    order, strides = _order(view), np.zeros(view.ndim, np.int64)
    step = 1
    for axis in reversed(order):
        strides[axis] = step
        step *= view.shape[axis]
    return strides


def _array(data: bytes, shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    bits = {1: np.uint8, 2: np.uint16, 4: np.uint32}[dtype.size]
    return mx.array(np.frombuffer(data, bits).reshape(shape)).view(dtype)
