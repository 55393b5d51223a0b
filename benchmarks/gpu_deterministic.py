"""The deterministic mode beside the normal one on a GPU: the same model, one run.

    python benchmarks/gpu_deterministic.py [--rows 1 8 16] [--context 32] [--layers N]

Llama-3.1-8B's shape in 4 bits. Both modes multiply by our products, take turns, and leave
the self-check out, so that little is compiled. The aim is a ratio of at most 1.15.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_decode import engine_once, loaded_shape, prompts
from benchmarks.gpu_shapes import LLAMA_8B
from benchmarks.gpu_variants import leave_out_checks, leave_out_timing, with_layers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--context", type=int, default=32)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    leave_out_checks()
    leave_out_timing()
    loaded = loaded_shape(with_layers(LLAMA_8B, args.layers), 4)
    for rows in args.rows:
        batch = prompts(rows, args.context, LLAMA_8B["vocab_size"])
        ratios = []
        for _ in range(args.rounds):
            normal = engine_once(loaded, batch, attention="kernels")
            fixed = engine_once(loaded, batch, attention="kernels", deterministic=True)
            ratios.append(fixed / normal)
            print(f"{rows} rows: {normal:.2f} / {fixed:.2f} ms", flush=True)
        print(f"{rows} rows: {statistics.median(ratios):.2f}x", flush=True)


if __name__ == "__main__":
    main()
