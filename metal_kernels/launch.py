"""How a kernel's text and arguments reach a device: the MLX launcher, the dispatch counter, the text's parts.

Knows nothing of attention; `kernels.py` says what to launch, and tests put another launcher in this one's place.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx

from rvllm_local.metal_kernels.compact import compact

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class KernelText:
    """One specialized kernel: its unique name, parameter names, prologue (`header`), body and the macros of both.

    `contiguous`: inputs with gaps are copied first. A kernel that writes an input in place must not ask for it.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    header: str
    body: str
    backend: str
    macros: Mapping[str, object]
    contiguous: bool = False


@dataclass(frozen=True, slots=True)
class Dispatch:
    """One launch. `grid` counts threads, and is a multiple of `threadgroup` along every axis."""

    kernel: KernelText
    inputs: tuple[mx.array, ...]
    grid: tuple[int, int, int]
    threadgroup: tuple[int, int, int]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[mx.Dtype, ...]


Launcher = Callable[[Dispatch], Sequence[mx.array]]


class DispatchCounter:
    """Counts launches by kernel. Under `mx.compile` Python runs only while tracing: `add` what the trace counted."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, counts: Mapping[str, int]) -> None:
        self._counts.update(counts)

    def snapshot(self) -> dict[str, int]:
        return dict(self._counts)

    def since(self, earlier: Mapping[str, int]) -> dict[str, int]:
        """Launches counted after `earlier`, a snapshot."""
        return {
            kind: count - earlier.get(kind, 0)
            for kind, count in self._counts.items()
            if count > earlier.get(kind, 0)
        }


class MLXLauncher:
    """Launches through `mx.fast.metal_kernel` or `mx.fast.cuda_kernel`; each kernel is built once."""

    def __init__(self, *, verbose: bool = False) -> None:
        self._built: dict[str, Any] = {}
        self._verbose = verbose

    def __call__(self, dispatch: Dispatch) -> Sequence[mx.array]:
        text = dispatch.kernel
        kernel = self._built.get(text.name)
        if kernel is None:
            kernel = self._built[text.name] = build(text)
        outputs: Sequence[mx.array] = kernel(
            inputs=list(dispatch.inputs),
            grid=dispatch.grid,
            threadgroup=dispatch.threadgroup,
            output_shapes=list(dispatch.shapes),
            output_dtypes=list(dispatch.dtypes),
            **({"verbose": True} if self._verbose else {}),
        )
        return outputs


def build(text: KernelText) -> Any:
    """The MLX kernel for `text`."""
    make = mx.fast.cuda_kernel if text.backend == "cuda" else mx.fast.metal_kernel
    header, body = (
        _by_reference(text) if text.backend == "cuda" else (text.header, text.body)
    )
    return make(
        name=text.name,
        input_names=list(text.inputs),
        output_names=list(text.outputs),
        source=body,
        header=header,
        ensure_row_contiguous=text.contiguous,
    )


@cache
def _text_folder() -> tempfile.TemporaryDirectory[str]:
    """Where CUDA's compiler finds the texts while this process lives."""
    return tempfile.TemporaryDirectory(prefix="rvllm-kernels-")


def _by_reference(text: KernelText) -> tuple[str, str]:
    """Header and body that only include the text: MLX reads through what it was given at every launch, 0.2 us a KB.

    Metal's compiler includes no files. The body names the strides that MLX has to pass.
    """
    folder = Path(_text_folder().name)
    for part, content in (("header", text.header), ("body", text.body)):
        (folder / f"{text.name}.{part}").write_text(content, encoding="utf-8")
    passed = " ".join(
        sorted(set(re.findall(r"\w+_(?:shape|strides|ndim)\b", text.body)))
    )
    include = f'#include "{folder}/{text.name}'
    return f'{include}.header"\n', f'{include}.body"\n// {passed}\n'


@cache
def source(name: str) -> str:
    """A file of this folder, as text."""
    return (FOLDER / name).read_text(encoding="utf-8")


def body_text(name: str) -> str:
    """A kernel's body, with the pieces that it includes (`#include "piece"`, one line each)."""
    lines = (
        re.fullmatch(r'#include "([\w.]+)"', line) or line
        for line in source(name).splitlines()
    )
    return (
        "\n".join(
            line if isinstance(line, str) else body_text(line[1]) for line in lines
        )
        + "\n"
    )


def kernel_text(
    kind: str,
    body: str,
    backend: str,
    defines: Mapping[str, object],
    inputs: Sequence[str],
    outputs: Sequence[str],
    parts: Sequence[str] = (),
    *,
    contiguous: bool = False,
) -> KernelText:
    """Puts the defines, the portability header, `parts` and the file `body` together under a name of their own.

    The name carries a hash: MLX caches compiled kernels by name and would rebuild on every change of text.
    """
    macros = {f"RV_{'CUDA' if backend == 'cuda' else 'METAL'}": 1, **defines}
    lines = [f"#define {name} {value}" for name, value in macros.items()]
    header = "\n".join(
        [*lines, *(compact(source(part), macros) for part in ("portable.h", *parts))]
    )
    text = compact(body_text(body), macros)
    digest = hashlib.sha256((header + text).encode()).hexdigest()[:12]
    name = f"rv_{kind}_{digest}"
    return KernelText(
        name,
        kind,
        tuple(inputs),
        tuple(outputs),
        header,
        text,
        backend,
        macros,
        contiguous,
    )
