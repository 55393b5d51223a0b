"""Lets a module of a definition compute something else than its class does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlx import nn


def replace_call(module: nn.Module, call: Callable[..., Any]) -> None:
    """Let a module compute `call`; its parts, parameters and name stay."""
    kind = type(module)
    names = {"__call__": call, "__module__": kind.__module__}
    module.__class__ = type(kind.__name__, (kind,), names)
