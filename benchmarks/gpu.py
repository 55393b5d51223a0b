"""All GPU benchmarks, one after the other, and the sections of docs/performance.md that they fill.

    python benchmarks/gpu.py

Needs a GPU that MLX launches on, numpy, and mlx-lm with what it needs. Writes benchmarks/results/gpu_*.json.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
BENCHMARKS = ("gpu_kernels", "gpu_decode", "gpu_mixed")


def main() -> int:
    for name in BENCHMARKS:
        command = [
            sys.executable,
            str(HERE / f"{name}.py"),
            "--json",
            str(HERE / "results" / f"{name}.json"),
        ]
        print(f"{name}:", flush=True)
        if status := subprocess.run(command, check=False).returncode:
            return status
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.page"], cwd=HERE.parent, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
