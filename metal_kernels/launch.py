"""How a kernel's text and arguments reach a device.

Here are the MLX launcher, the counter of dispatches, and the text's parts. Nothing here
knows attention: `kernels.py` says what to launch. Tests bring another launcher.
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
from rvllm_local.metal_kernels.config import text_language
from rvllm_local.scratch import temporary_folder

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class KernelText:
    """One specialized kernel.

    name: unique; it carries a hash of the text.
    header: the text before the body. `macros` are those of both.
    contiguous: inputs with gaps are copied first. A kernel that writes an input in place
        must not ask for it.
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
    """One launch.

    `grid` counts threads. It is a multiple of `threadgroup` along every axis.
    """

    kernel: KernelText
    inputs: tuple[mx.array, ...]
    grid: tuple[int, int, int]
    threadgroup: tuple[int, int, int]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[mx.Dtype, ...]


Launcher = Callable[[Dispatch], Sequence[mx.array]]


class DispatchCounter:
    """Counts launches by kernel.

    Under `mx.compile` Python runs only while tracing: `add` what the trace counted.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, counts: Mapping[str, int]) -> None:
        self._counts.update(counts)

    def snapshot(self) -> dict[str, int]:
        return dict(self._counts)

    def since(self, earlier: Mapping[str, int]) -> dict[str, int]:
        """Launches counted after `earlier`, a snapshot."""
        launches = {}
        for kind, count in self._counts.items():
            new = count - earlier.get(kind, 0)
            if new > 0:
                launches[kind] = new
        return launches


class MLXLauncher:
    """Launches through `mx.fast.metal_kernel` or `mx.fast.cuda_kernel`.

    Each kernel is built once.
    """

    def __init__(self, *, verbose: bool = False) -> None:
        self._built: dict[str, Any] = {}
        self._verbose = verbose

    def __call__(self, dispatch: Dispatch) -> Sequence[mx.array]:
        text = dispatch.kernel
        kernel = self._built.get(text.name)
        if kernel is None:
            kernel = build(text)
            self._built[text.name] = kernel
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
    make: Callable[..., Any] = mx.fast.metal_kernel
    header = text.header
    body = text.body
    if text.backend == "cuda":
        make = mx.fast.cuda_kernel
        header, body = _by_reference(text)
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
    """The folder in which CUDA's compiler finds the texts while this process lives."""
    return temporary_folder()


def _by_reference(text: KernelText) -> tuple[str, str]:
    """Header and body that only include the text.

    MLX reads its texts at every launch, 0.2 us a KB. Metal's compiler includes no
    files. The body names the strides that MLX has to pass.
    """
    folder = Path(_text_folder().name)
    header = folder / f"{text.name}.header"
    body = folder / f"{text.name}.body"
    header.write_text(text.header, encoding="utf-8")
    body.write_text(text.body, encoding="utf-8")
    passed = set(re.findall(r"\w+_(?:shape|strides|ndim)\b", text.body))
    names = " ".join(sorted(passed))
    return f'#include "{header}"\n', f'#include "{body}"\n// {names}\n'


@cache
def source(name: str) -> str:
    """A file of this folder, as text."""
    return (FOLDER / name).read_text(encoding="utf-8")


def body_text(name: str) -> str:
    """A kernel's body with the pieces that it includes.

    Each is a line `#include "piece"`.
    """
    lines = []
    for line in source(name).splitlines():
        include = re.fullmatch(r'#include "([\w.]+)"', line)
        if include is None:
            lines.append(line)
        else:
            lines.append(body_text(include[1]))
    return "\n".join(lines) + "\n"


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
    """Put the defines, the portability header, `parts` and the file `body` together.

    The name carries a hash: MLX caches compiled kernels by name, and would rebuild one
    on every change of its text.
    """
    language = "RV_CUDA" if backend == "cuda" else "RV_METAL"
    macros = {language: 1, **defines}
    pieces = [f"#define {name} {value}" for name, value in macros.items()]
    for part in ("portable.h", *parts):
        pieces.append(compact(source(part), macros))
    header = "\n".join(pieces)
    text = compact(body_text(body), macros)
    whole = header + text
    digest = hashlib.sha256(whole.encode()).hexdigest()
    return KernelText(
        name=f"rv_{kind}_{digest[:12]}",
        kind=kind,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        header=header,
        body=text,
        backend=backend,
        macros=macros,
        contiguous=contiguous,
    )


class ArraysKernel:
    """What kernels that touch no arena have: a language, a launcher, a counter, texts."""

    def __init__(
        self,
        *,
        backend: str | None = None,
        launcher: Launcher | None = None,
        counter: DispatchCounter | None = None,
    ) -> None:
        """None: this machine's language, MLX's launches, a counter of its own."""
        if counter is None:
            counter = DispatchCounter()
        if launcher is None:
            launcher = MLXLauncher()
        self.backend = text_language(backend)
        self.counter = counter
        self._launcher = launcher
        self._texts: dict[tuple[object, ...], KernelText] = {}  # made once each
