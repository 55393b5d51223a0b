"""Makes `rvllm_local` and the folders mapped into it importable from a checkout that was never installed.

For hosts that have only numpy and MLX; an installed package is left alone.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAPPED = ("models", "metal_kernels", "tui")


def prepare() -> None:
    """Puts the checkout on the path and maps its top-level folders below `rvllm_local`."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    if importlib.util.find_spec("rvllm_local.metal_kernels") is None:
        sys.meta_path.insert(0, _Mapped())


class _Mapped:
    """Finds `rvllm_local.metal_kernels` in `metal_kernels/`, and so on."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        parent, _, child = name.rpartition(".")
        if parent != "rvllm_local" or child not in MAPPED:
            return None
        folder = ROOT / child
        return importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
