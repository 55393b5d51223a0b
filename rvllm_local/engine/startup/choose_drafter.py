"""Chooses what drafts for a model, or says why nothing does."""

from __future__ import annotations

from rvllm_local.engine.detokenizer import Vocabulary
from rvllm_local.engine.runner import ModelRunner
from rvllm_local.engine.speculation.contract import Drafter
from rvllm_local.engine.speculation.ngrams import NgramDrafter
from rvllm_local.engine.speculation.speculator import Speculator
from rvllm_local.engine.startup.check_drafts import why_drafts_differ
from rvllm_local.engine.startup.open_drafter import open_drafter, open_head
from rvllm_local.engine.startup.open_runner import OpenedRunner
from rvllm_local.errors import ConfigError
from rvllm_local.memory.layout import KVLayout
from rvllm_local.memory.tables import KVTables
from rvllm_local.options import EngineOptions


def make_speculator(
    opened: OpenedRunner,
    text: Vocabulary,
    options: EngineOptions,
) -> tuple[Speculator | None, str]:
    """What drafts, and its name; or None and the reason.

    A step has no more tokens with its drafts than rows are planned for. Raises
    `ConfigError` for a model that cannot draft for this one.
    """
    if options.draft == "off":
        return None, "off"
    runner = opened.runner
    reason = _why_not(runner, opened.parts.kv, options)
    if reason is not None:
        if options.drafts_by_model:
            raise ConfigError(
                f"draft cannot be {options.draft!r:.80}: {reason}; take off"
            )
        return None, f"off: {reason}"
    drafter: Drafter = NgramDrafter()
    if options.drafts_by_head:
        drafter = open_head(opened, options)
    elif options.drafts_by_model:
        drafter = open_drafter(opened, text, options)
    speculator = Speculator(drafter, options.max_rows)
    return speculator, speculator.name


def _why_not(
    runner: ModelRunner,
    kv: KVTables,
    options: EngineOptions,
) -> str | None:
    """Why nothing can be drafted here, or is not unless it is asked for."""
    if options.draft == "auto" and runner.overlaps:
        return "what drafts gain where steps overlap was not measured; ngram drafts"
    if options.ranks > 1:
        return "ranks compute one token of a row in a call"
    if not runner.verifies:
        return _obstacle(runner, kv.layout)
    if options.max_rows < 2:
        return "with max_rows = 1 a step is planned for one token"
    # Kernels are compiled by each machine; the CPU's back ends are numpy's and tested.
    # A model that attends by itself may not look at a mask where rows have one token.
    if (options.self_check and runner.overlaps) or runner.mode.dense:
        difference = why_drafts_differ(runner, kv, runner.vocab_size)
        if difference is not None:
            return f"several tokens of a row in one call differ ({difference})"
    return None


def _obstacle(runner: ModelRunner, layout: KVLayout) -> str:
    if not runner.mode.batched:
        return "this model's code does not take rows of several positions"
    if layout.has_state:
        return "its recurrent layers keep one state a sequence"
    return f"the {runner.backend_name} check one token a row"
