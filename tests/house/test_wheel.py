"""The wheel holds one importable package, `rvllm_local`, with everything in it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_only_rvllm_local_is_importable(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in (
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "rvllm_local",
        "models",
        "metal_kernels",
        "tui",
    ):
        (source / name).symlink_to(ROOT / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
    ]
    subprocess.run(
        [*command, "--wheel-dir", str(tmp_path), str(source)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {
        "rvllm_local"
    }
    for needed in (
        "rvllm_local/py.typed",
        "rvllm_local/models/catalog.toml",
        "rvllm_local/models/perplexity.txt",
        "rvllm_local/metal_kernels/portable.h",
        "rvllm_local/engine/core.py",
        "rvllm_local/tui/__init__.py",
    ):
        assert needed in names
