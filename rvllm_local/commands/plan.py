"""`rvllm plan`: the memory plan of a model that is not loaded."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import TYPE_CHECKING

from rvllm_local import host
from rvllm_local.commands.flags import engine_flags
from rvllm_local.config import Config, load_config, show_progress

if TYPE_CHECKING:
    from rvllm_local.memory.plan import MemoryPlan


def _plan(config: Config) -> MemoryPlan:
    """The plan. Of a model that is not on this machine, only its configuration is read."""
    from rvllm_local.engine.startup.open import plan_files
    from rvllm_local.engine.startup.planning import plan_model
    from rvllm_local.models.describe import outlined
    from rvllm_local.models.locate import local_model
    from rvllm_local.models.store import installed_models

    files = local_model(config.model, config.cache_dir)
    if files is None:
        files = installed_models(config.cache_dir).get(config.model)
    if files is not None:
        return plan_files(files, config.options)
    outline = outlined(config.model, show_progress, cache_dir=config.cache_dir)
    with outline as described:
        return plan_model(described, config.options, strict=False)


def plan(arguments: argparse.Namespace) -> int:
    """Print the plan; exit status 1 when it does not fit."""
    flags = {"model": arguments.model, **engine_flags(arguments)}
    if arguments.context is not None:
        flags["context_length"] = arguments.context
    if arguments.concurrency is not None:
        flags["max_rows"] = arguments.concurrency
    config = load_config(flags)
    host.prepare()
    memory_plan = _plan(config)
    if arguments.json:
        sys.stdout.write(
            json.dumps(
                {
                    **dataclasses.asdict(memory_plan),
                    **memory_plan.lines(),
                    "fits": memory_plan.fits,
                }
            )
            + "\n"
        )
    else:
        sys.stdout.write(memory_plan.table() + "\n")
    return 0 if memory_plan.fits else 1
