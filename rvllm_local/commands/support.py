"""What several verbs share: the merged configuration, and progress on standard error. Loads nothing heavy."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from rvllm_local.config import Config, load_config


def configured(flags: Mapping[str, Any] | None = None) -> Config:
    """The merged configuration."""
    return load_config(flags or {})


def show_progress(message: str) -> None:
    """Say how far something is, beside the output."""
    sys.stderr.write(f"rvllm: {message}\n")
    sys.stderr.flush()
