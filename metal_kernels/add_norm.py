"""Adding to the residual stream and norming the sum, in one launch where MLX needs two. Touches no arena."""

from __future__ import annotations

import mlx.core as mx

from rvllm_local.errors import UnsupportedModelError
from rvllm_local.metal_kernels.config import KINDS, TYPES, default_backend
from rvllm_local.metal_kernels.launch import Dispatch, DispatchCounter, Launcher, MLXLauncher, kernel_text

_VECTOR = 8  # elements a thread loads at once
_MOST_SIMDGROUPS = 8  # a row is small: more threads wait longer for each other than they save


class AddNorm:
    """`added + stream` and its RMS norm (Zhang and Sennrich, 2019), for rows of any one model."""

    def __init__(
        self, *, backend: str | None = None, launcher: Launcher | None = None, counter: DispatchCounter | None = None
    ) -> None:
        chosen = default_backend() if backend is None else backend
        self.backend = "cuda" if chosen == "cuda" else "metal"
        self.counter = DispatchCounter() if counter is None else counter
        self._launcher: Launcher = MLXLauncher() if launcher is None else launcher

    def __call__(self, stream: mx.array, added: mx.array, weight: mx.array, eps: float) -> tuple[mx.array, mx.array]:
        """The sum, and the sum normed: both of `stream`'s shape `[..., width]` and type; `weight` is `[width]`.

        Raises `UnsupportedModelError` where types or shapes differ, or the width is not a multiple of 8.
        """
        width = stream.shape[-1]
        if stream.shape != added.shape or weight.shape != (width,) or width % _VECTOR:
            raise UnsupportedModelError(
                f"no launch adds {added.shape} to a stream of {stream.shape} and norms it by {weight.shape}"
            )
        if stream.dtype not in TYPES[self.backend] or not stream.dtype == added.dtype == weight.dtype:
            raise UnsupportedModelError(
                f"no launch adds {added.dtype} to a stream of {stream.dtype} and norms it by {weight.dtype}"
            )
        vectors = width // _VECTOR
        simdgroups = min(_MOST_SIMDGROUPS, -(-vectors // 32))
        kind = TYPES[self.backend][stream.dtype]
        defines: dict[str, object] = {
            "RV_T": kind,
            "RV_T_BYTES": stream.dtype.size,
            "RV_KV": kind,
            "RV_KIND": KINDS[stream.dtype],
            "RV_D": width,
            "RV_LAYERS": 1,
            "RV_KV_HEADS": 1,
            "RV_SIMDGROUPS": simdgroups,
            "RV_LOADS": -(-vectors // (32 * simdgroups)),
            "RV_EPS": f"{eps:.9e}f",
        }
        text = kernel_text(
            "add_norm",
            "add_norm.metal",
            self.backend,
            defines,
            ("stream", "added", "weight"),
            ("total", "normed"),
            contiguous=True,
        )
        rows = stream.size // width
        self.counter.add({"add_norm": 1})
        total, normed = self._launcher(
            Dispatch(
                text,
                (stream, added, weight),
                (32 * simdgroups * rows, 1, 1),
                (32 * simdgroups, 1, 1),
                (stream.shape, stream.shape),
                (stream.dtype, stream.dtype),
            )
        )
        return total, normed
