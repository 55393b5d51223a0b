"""Puts the checkout on the path and prepares MLX before any kernel test imports it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import bootstrap

bootstrap.prepare()

from rvllm_local import host  # noqa: E402

host.prepare()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The emulator wants GNU's C++ compiler and Linux's contexts; on a Mac the device itself runs the text, in tests/gpu."""
    if sys.platform != "darwin":
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(
                pytest.mark.skip(
                    reason="the emulator runs on Linux; tests/gpu proves the kernels here"
                )
            )
