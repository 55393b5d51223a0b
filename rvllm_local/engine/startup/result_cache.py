"""Remembers what a start proved about a model on this machine, for the next start.

Everything that the results depend on is in the note's key: the weights, the options,
the code that ran, the libraries, the processor and the environment. Under another key
all is proven anew.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from rvllm_local import host
from rvllm_local.engine.run_mode import RunMode
from rvllm_local.models.file_stamps import file_stamp
from rvllm_local.models.loader import LoadedModel
from rvllm_local.models.locate import ModelFiles
from rvllm_local.models.startup_notes import read_note, settings_of, write_note
from rvllm_local.options import EngineOptions

_OWN_CODE = ("attention", "engine", "memory", "metal_kernels", "models")
# Lines of /proc/cpuinfo that differ between cores or starts.
_CHANGING = ("cpu MHz", "bogomips", "processor", "apicid", "initial")
# Beginnings of the names of environment variables.
_SETTINGS = (
    "MLX_",
    "OPENBLAS_",
    "GOTO_",
    "OMP_",
    "MKL_",
    "RVLLM_BLAS",
    "GLIBC_TUNABLES",
    "LD_PRELOAD",
)


@dataclass(frozen=True, slots=True)
class StartupResult:
    """What a start proved."""

    mode: RunMode  # its logits agreed with mlx-lm's
    row_group: int  # rows of a deterministic call; 0 without the deterministic mode
    scratch: int  # bytes that a step takes


def result_key(
    files: ModelFiles,
    loaded: LoadedModel,
    options: EngineOptions,
    sizes: Sequence[object],
) -> str:
    """The key of a model's result.

    `sizes` are the layout and the numbers that were worked out from the options.
    """
    weights = [file_stamp(path) for path in files.weight_paths()]
    versions = (
        str(vars(mx)["__version__"]),
        np.__version__,
        sys.version,
        platform.platform(),
    )
    parts = [
        loaded.fingerprint,
        weights,
        options,
        sizes,
        sorted(_code()),
        versions,
        _processor(),
        host.prepare(),
        _blas(),
        settings_of(_SETTINGS),
    ]
    digest = hashlib.sha256(repr(parts).encode())
    return f"result {digest.hexdigest()}"


def read_result(key: str, cache_dir: Path | None = None) -> StartupResult | None:
    """The noted result; None if the note has another form than is written here."""
    note = read_note(key, cache_dir)
    kinds = [bool, bool, int, int]
    if not isinstance(note, list) or [type(part) for part in note] != kinds:
        return None
    batched, dense, row_group, scratch = note
    if row_group < 0 or scratch < 0:
        return None
    return StartupResult(RunMode(batched, dense), row_group, scratch)


def write_result(
    key: str,
    result: StartupResult,
    cache_dir: Path | None = None,
) -> None:
    """Note a result. Failing to costs only time."""
    write_note(
        key,
        [result.mode.batched, result.mode.dense, result.row_group, result.scratch],
        cache_dir,
    )


def _code() -> Iterable[tuple[str, int, int]]:
    """Size and time of all code that computes.

    It is this project's, MLX's, and the model definitions that were loaded.
    """
    package = __name__.partition(".")[0]
    for name in _OWN_CODE:
        for top in importlib.import_module(f"{package}.{name}").__path__:
            for folder, folders, files in os.walk(top):
                folders[:] = sorted(set(folders) - {"__pycache__"})
                for file in sorted(files):
                    yield _dated(str(Path(folder, file)))
    for name, module in sys.modules.copy().items():
        if not name.startswith(("mlx.", "mlx_lm.")):
            continue
        path = getattr(module, "__file__", None)
        if path:
            yield _dated(path)


def _dated(path: str) -> tuple[str, int, int]:
    state = Path(path).stat()
    return path, state.st_size, state.st_mtime_ns


def _processor() -> tuple[object, ...]:
    """The processor's kind, and which of its cores this process may use."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        first_core = text.split("\n\n")[0]
        lines = first_core.splitlines()
    except OSError:
        lines = [platform.processor()]
    kind = [line for line in lines if not line.startswith(_CHANGING)]
    cores: object = os.cpu_count()
    if hasattr(os, "sched_getaffinity"):
        cores = sorted(os.sched_getaffinity(0))
    return (tuple(kind), cores)


def _blas() -> str:
    """The BLAS that was loaded: its version, and its kernels for this processor."""
    answers = []
    for name in ("openblas_get_config", "openblas_get_corename"):
        function = getattr(ctypes.CDLL(None), name, None)
        if function is not None:
            function.restype = ctypes.c_char_p
            answers.append(str(function()))
    return " ".join(answers)
