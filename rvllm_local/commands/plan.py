"""`rvllm plan`: the memory plan of a model that is not loaded."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from rvllm_local import host
from rvllm_local.commands.support import configured, show_progress
from rvllm_local.engine.options import EngineOptions

_FLAGS = (
    "model",
    "kv_memory",
    "kv_dtype",
    "attention",
    "context_length",
    "cache",
    "deterministic",
)


def plan(arguments: argparse.Namespace) -> int:
    """Print the plan; exit status 1 when it does not fit."""
    flags = {name: getattr(arguments, name) for name in _FLAGS}
    if arguments.context is not None:
        flags["context_length"] = arguments.context
    config = configured({**flags, "max_rows": arguments.concurrency})
    host.prepare()
    from rvllm_local.engine.startup.planning import plan_model
    from rvllm_local.models.describe import outlined

    with outlined(config.model, show_progress, cache_dir=config.cache_dir) as described:
        found = plan_model(described, EngineOptions.from_config(config), strict=False)
    if arguments.json:
        sys.stdout.write(
            json.dumps(
                {**dataclasses.asdict(found), **found.lines(), "fits": found.fits}
            )
            + "\n"
        )
    else:
        sys.stdout.write(found.table() + "\n")
    return 0 if found.fits else 1
