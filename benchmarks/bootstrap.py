"""Makes `rvllm_local` importable from a checkout that was never installed, for hosts with only numpy and MLX."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def prepare() -> None:
    """Put the checkout on the path; its links make the top-level folders parts of the package."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
