"""Opens the core that a model's files ask for: one that writes, or one that reads."""

from __future__ import annotations

from rvllm_local.engine.core_contract import Core
from rvllm_local.engine.detokenizer import Vocabulary
from rvllm_local.engine.startup.build import open_core
from rvllm_local.engine.startup.open_pooled import open_pooled_core, plan_pooled
from rvllm_local.engine.startup.planning import plan_model
from rvllm_local.errors import ConfigError
from rvllm_local.memory.plan import MemoryPlan
from rvllm_local.models.describe import describe
from rvllm_local.models.encoders.setup import pooled_setup
from rvllm_local.models.locate import ModelFiles
from rvllm_local.options import EngineOptions


def open_any_core(
    files: ModelFiles,
    text: Vocabulary,
    options: EngineOptions,
) -> Core:
    """A core ready for its first request, in this process alone.

    Raises as `open_core` does, and `ConfigError` for more than one rank.
    """
    if options.ranks > 1:
        raise ConfigError(
            f"ranks cannot be {options.ranks} in this process: several ranks serve "
            "through `rvllm serve`; reach them with LLM.connect"
        )
    setup = pooled_setup(files)
    if setup is not None:
        return open_pooled_core(files, setup, text, options)
    return open_core(files, text, options)


def plan_files(files: ModelFiles, options: EngineOptions) -> MemoryPlan:
    """The memory plan of a model that is not loaded, whether it fits or not."""
    setup = pooled_setup(files)
    if setup is not None:
        return plan_pooled(files, setup, options)
    return plan_model(describe(files), options, strict=False)
