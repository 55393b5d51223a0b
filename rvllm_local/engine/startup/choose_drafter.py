"""Chooses what drafts for a model, or says why nothing does."""

from __future__ import annotations

from rvllm_local.engine.runner import ModelRunner
from rvllm_local.engine.speculation.ngrams import NgramDrafter
from rvllm_local.engine.speculation.speculator import Speculator
from rvllm_local.engine.startup.check_drafts import why_drafts_differ
from rvllm_local.memory.layout import KVLayout
from rvllm_local.memory.tables import KVTables
from rvllm_local.options import EngineOptions


def make_speculator(
    runner: ModelRunner,
    kv: KVTables,
    options: EngineOptions,
) -> tuple[Speculator | None, str]:
    """What drafts, and its name; or None and the reason.

    A step has no more tokens with its drafts than rows are planned for.
    """
    if options.draft == "off":
        return None, "off"
    if not runner.verifies:
        return None, _why_not(runner, kv.layout)
    if options.max_rows < 2:
        return None, "off: with max_rows = 1 a step is planned for one token"
    # Kernels are compiled by each machine; the CPU's back ends are numpy's and tested.
    if options.self_check and runner.overlaps:
        reason = why_drafts_differ(runner, kv, runner.vocab_size)
        if reason is not None:
            return None, f"off: several tokens of a row in one call differ ({reason})"
    speculator = Speculator(NgramDrafter(), options.max_rows)
    return speculator, speculator.name


def _why_not(runner: ModelRunner, layout: KVLayout) -> str:
    if layout.has_state:
        return "off: recurrent layers keep one state a sequence"
    if not runner.mode.batched or runner.mode.dense:
        return "off: this model's code does not take rows of several positions"
    return f"off: the {runner.backend_name} check one token a row"
