"""The options' former place; they are declared in `rvllm_local.options`."""

from rvllm_local.options import EngineOptions

__all__ = ["EngineOptions"]
