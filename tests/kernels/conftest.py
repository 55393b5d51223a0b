"""Puts the checkout on the path and prepares MLX before any kernel test imports it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import bootstrap

bootstrap.prepare()

from rvllm_local import host  # noqa: E402

host.prepare()
