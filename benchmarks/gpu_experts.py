"""Routed experts alone: ours beside MLX's gathered product, on a GPU.

`python benchmarks/gpu_experts.py [--json FILE] [--bits 4] [--rows 1 8 ...] [--tune]`; needs
numpy, MLX, mlx-lm and this checkout. The shape is Qwen3-30B-A3B's: 128 experts, eight a
token, 2,048 wide, 768 inside. Two layers take turns, each larger than a cache.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import bootstrap

bootstrap.prepare()

import rvllm_local  # noqa: F401, I001  (first: it prepares the process for MLX)

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx_lm.models.switch_layers import SwitchGLU

from rvllm_local.metal_kernels import default_backend
from rvllm_local.metal_kernels.gathered_matmul import GatheredMatmul
from rvllm_local.metal_kernels.proof import gathered
from rvllm_local.metal_kernels.proof.timing import copy_bandwidth, seconds
from rvllm_local.metal_kernels.quantized_matmul import MatrixTuning
from rvllm_local.models.expert_products import install_expert_products

EXPERTS, EACH, HIDDEN, INNER = 128, 8, 2048, 768
CALLS = 40
LAYERS = 2
TUNINGS = (
    MatrixTuning(2, 4, 8, 4),
    MatrixTuning(1, 4, 8, 6),
    MatrixTuning(2, 2, 8, 8),
    MatrixTuning(4, 4, 8, 2),
)


def made_layer(bits: int) -> SwitchGLU:
    """One layer's experts with random weights in groups of 64."""
    layer = SwitchGLU(HIDDEN, INNER, EXPERTS)
    layer.set_dtype(mx.bfloat16)
    nn.quantize(layer, group_size=64, bits=bits)
    mx.eval(layer.parameters())
    return layer


def random_call(rows: int, seed: int) -> tuple[mx.array, mx.array]:
    """Rows, and different experts for each of them."""
    random = np.random.default_rng(seed)
    choices = [random.permutation(EXPERTS)[:EACH] for _ in range(rows)]
    x = mx.random.normal((rows, 1, HIDDEN)).astype(mx.bfloat16)
    indices = mx.array(np.stack(choices).astype(np.uint32))[:, None]
    mx.eval(x, indices)
    return x, indices


def weights_read(layer: SwitchGLU, indices: mx.array) -> int:
    """Bytes of the experts that the rows ask for."""
    nbytes = sum(
        array.nbytes for part in layer.children().values() for array in arrays_of(part)
    )
    return nbytes // EXPERTS * len(np.unique(np.array(indices)))


def arrays_of(part: object) -> list[mx.array]:
    if not isinstance(part, nn.Module):
        return []
    return [value for value in part.values() if isinstance(value, mx.array)]


def timed(calls: list[Callable[[], mx.array]]) -> float:
    """Seconds a call, the layers taking turns."""
    order = itertools.cycle(calls)

    def next_call() -> mx.array:
        return next(order)()

    mx.eval([call() for call in calls])
    return seconds(next_call, CALLS)


def measure(
    layers: list[SwitchGLU], rows: int, tuning: MatrixTuning | None, copy: float
) -> dict[str, object]:
    """One layer's experts with `rows` rows, ours and the definition's."""
    inputs = [random_call(rows, seed) for seed in range(8)]
    definition = SwitchGLU.__call__
    theirs, ours = [], []
    for number, (x, indices) in enumerate(inputs):
        layer = layers[number % LAYERS]
        theirs.append(lambda layer=layer, x=x, i=indices: definition(layer, x, i))
    expected = theirs[0]().astype(mx.float32)
    their_seconds = timed(theirs)
    for layer in layers:
        multiply = GatheredMatmul(tuning=tuning)
        install_expert_products(layer, multiply, each=EACH, always=True, tried=(rows,))
    for number, (x, indices) in enumerate(inputs):
        layer = layers[number % LAYERS]
        ours.append(lambda layer=layer, x=x, i=indices: layer(x, i))
    difference = mx.abs(ours[0]().astype(mx.float32) - expected).max()
    our_seconds = timed(ours)
    nbytes = weights_read(layers[0], inputs[0][1])
    return {
        "rows": rows,
        "ours_us": our_seconds * 1e6,
        "mlx_us": their_seconds * 1e6,
        "ours_of_copy": nbytes / our_seconds / copy,
        "difference": (difference / mx.abs(expected).max()).item(),
        "tuning": str(tuning),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--bits", type=int, default=4, choices=(4, 8))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--no-proof", action="store_true")
    options = parser.parse_args()
    if default_backend() == "none":
        print("no GPU that MLX can launch on: nothing to measure", file=sys.stderr)
        return 1
    print(f"mlx {mx.__version__}, {mx.device_info().get('device_name', 'unknown GPU')}")
    if not options.no_proof:
        case = gathered.EXPERTS[0]
        print(f"{case.name}: error {gathered.check_gathered(case):.1e}", flush=True)
        gathered.check_pairs_alone(case)
        print(f"{case.name}: rows are independent", flush=True)
    copy = copy_bandwidth(2**30)
    print(f"plain copy: {copy / 1e9:.0f} GB/s", flush=True)
    records: list[dict[str, object]] = []
    layers = [made_layer(options.bits) for _ in range(LAYERS)]
    for rows in options.rows:
        for tuning in TUNINGS if options.tune else (None,):
            record = measure(layers, rows, tuning, copy)
            records.append(record)
            print(
                f"{rows:>2} rows: ours {record['ours_us']:8.1f} us "
                f"({record['ours_of_copy']:4.0%} of copy), MLX {record['mlx_us']:8.1f} us, "
                f"{record['mlx_us'] / record['ours_us']:5.2f}x, "  # type: ignore[operator]
                f"difference {record['difference']:.1e}, {tuning}",
                flush=True,
            )
            if options.json:
                text = json.dumps({"copy_bytes_per_s": copy, "rows": records}, indent=1)
                options.json.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
