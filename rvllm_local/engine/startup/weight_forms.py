"""Decides in which form a model's weights are held on a CPU, before any is read.

A form that fails the self-check gives way to the next one, which loads the weights
anew.
"""

from __future__ import annotations

from typing import Literal

from rvllm_local.machine import is_on_cpu
from rvllm_local.models.cpu.runtime import missing_runtime
from rvllm_local.models.describe import ModelDescription
from rvllm_local.options import EngineOptions

# "step": packed, a whole step at once. "layers": packed, layer by layer. "plain":
# float32 on a CPU, as stored elsewhere.
WeightForm = Literal["step", "layers", "plain"]


def form_in_words(form: WeightForm) -> str:
    """What plans and statistics call a form."""
    if form == "step":
        return "quantized"
    if form == "layers":
        return "quantized, layer by layer"
    return "float32" if is_on_cpu() else "as stored"


def weight_forms(
    model: ModelDescription, options: EngineOptions
) -> tuple[tuple[WeightForm, ...], str | None]:
    """The forms to try, best first, and why a quantized model is widened if it is."""
    if model.packed_bytes is None:
        note = None
        if options.cpu_weights == "quantized":
            note = "cpu_weights: this model has no quantized weights for a CPU to keep"
        return ("plain",), note
    if options.cpu_weights == "float32":
        return ("plain",), None
    reason = _obstacle(options)
    if reason is not None:
        return ("plain",), reason
    if options.attention == "reference":
        return ("layers", "plain"), None
    return ("step", "layers", "plain"), None


def _obstacle(options: EngineOptions) -> str | None:
    if options.deterministic:
        return (
            "weights are widened to float32: the deterministic mode needs products "
            "that do not depend on their number of rows"
        )
    if options.adapters:
        return "weights are widened to float32: adapters need it on a CPU"
    return missing_runtime()
