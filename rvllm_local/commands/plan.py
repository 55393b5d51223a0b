"""`rvllm plan`: the memory plan of a model that is not loaded."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from rvllm_local import host
from rvllm_local.commands.flags import engine_flags
from rvllm_local.config import load_config, show_progress


def plan(arguments: argparse.Namespace) -> int:
    """Print the plan; exit status 1 when it does not fit."""
    flags = {"model": arguments.model, **engine_flags(arguments)}
    if arguments.context is not None:
        flags["context_length"] = arguments.context
    if arguments.concurrency is not None:
        flags["max_rows"] = arguments.concurrency
    config = load_config(flags)
    host.prepare()
    from rvllm_local.engine.startup.planning import plan_model
    from rvllm_local.models.describe import outlined

    with outlined(config.model, show_progress, cache_dir=config.cache_dir) as described:
        memory_plan = plan_model(described, config.options, strict=False)
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
