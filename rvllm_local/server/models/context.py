"""How long a context a model has, before it is loaded."""

from __future__ import annotations

from rvllm_local.errors import RvllmError
from rvllm_local.models.config_file import context_length, read_config
from rvllm_local.models.gguf.config import gguf_config
from rvllm_local.models.gguf.reader import GGUFFile
from rvllm_local.models.locate import ModelFiles
from rvllm_local.options import EngineOptions


def context_of(files: ModelFiles, options: EngineOptions) -> int | None:
    """The tokens of its context, as far as the options let it; None if nothing tells.

    Reads the model's files: not for the event loop.
    """
    try:
        if files.kind == "gguf":
            config = gguf_config(GGUFFile(files.path))
        else:
            config = read_config(files.path)
        length = context_length(config)
    except (RvllmError, OSError):
        return None
    if options.context_length is None:
        return length
    return min(length, options.context_length)
