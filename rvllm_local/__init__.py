"""rvllm_local: a local-first assistant runtime for Apple Silicon.

Importing it loads nothing heavy, but does prepare the process for MLX (see `host`), which must happen before MLX
is imported. `LLM` is imported on first use.
"""

import sys
from typing import TYPE_CHECKING, Any

from rvllm_local.early_signals import take_early_signals

take_early_signals(sys.orig_argv)  # before the rest, which takes a tenth of a second

from rvllm_local import host  # noqa: E402
from rvllm_local.types import (  # noqa: E402
    ChatEvent,
    Completion,
    SamplingParams,
    StreamEvent,
    ToolCall,
)

if TYPE_CHECKING:
    from rvllm_local.llm import LLM

host.prepare()

__version__ = "0.3.0"
__all__ = [
    "LLM",
    "ChatEvent",
    "Completion",
    "SamplingParams",
    "StreamEvent",
    "ToolCall",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name == "LLM":
        from rvllm_local.llm import LLM

        return LLM
    raise AttributeError(f"module 'rvllm_local' has no attribute {name!r}")
