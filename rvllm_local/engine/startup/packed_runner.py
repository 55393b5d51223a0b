"""Makes a runner over packed weights on a CPU, and proves it.

Its predictions are held against float32 arithmetic of the same weights. The packed
product rounds activations to int8. That arithmetic is done a second time with the same
rounding: the divergence of its two results is what rounding explains.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx import nn

from rvllm_local import host
from rvllm_local.attention.cpu.reference import ReferenceBackend
from rvllm_local.attention.probe import plain_caches
from rvllm_local.engine.run_mode import RunMode
from rvllm_local.engine.runner import ModelRunner
from rvllm_local.engine.startup.choose_runner import LoadedParts
from rvllm_local.engine.startup.measure_scratch import measure_scratch, resident_growth
from rvllm_local.engine.startup.result_cache import (
    StartupResult,
    read_result,
    write_result,
)
from rvllm_local.engine.startup.selfcheck import (
    Judge,
    check_prompts,
    first_agreeing,
    run_modes,
)
from rvllm_local.engine.startup.weight_forms import WeightForm, form_in_words
from rvllm_local.engine.step_runner import StepRunner
from rvllm_local.errors import UnsupportedModelError
from rvllm_local.models.cpu.backend import StepBackend, StepModel
from rvllm_local.models.cpu.layers import pack_layers
from rvllm_local.models.cpu.step import build_step
from rvllm_local.models.cpu.stored import half_rounded
from rvllm_local.models.cpu.structure import find_decoder
from rvllm_local.options import EngineOptions

FloatArray = npt.NDArray[np.float32]

_COMPARED = 2  # tokens at the end of each prompt
_TIMES = 4.0  # over the mean divergence that rounding explains: four tokens are few
_EXACT = 1e-3  # nats that float32 arithmetic in another order explains
_USEFUL = 0.1  # nats: with more, predictions in int8 are others


def choose_packed_runner(
    model: LoadedParts,
    form: WeightForm,
    options: EngineOptions,
    key: str | None,
) -> tuple[ModelRunner, int | None]:
    """A runner over the packed model, and the bytes that a step takes.

    Those are None if nothing is checked. Packs the model's weights. Raises
    `UnsupportedModelError` if its logits are not those of float32 arithmetic; the model
    is of no use then.
    """
    runner, scratch = _choose(model, form, options, key)
    used_form: WeightForm = "layers"
    if isinstance(runner.block_io, StepBackend):
        used_form = "step"
    runner.weight_form = form_in_words(used_form)
    gc.collect()
    mx.clear_cache()
    host.trim_heap()
    return runner, scratch


def _choose(
    model: LoadedParts,
    form: WeightForm,
    options: EngineOptions,
    key: str | None,
) -> tuple[ModelRunner, int | None]:
    if not options.self_check:
        make_runner, _ = _pack(model, form)
        mode = RunMode(model.paged, dense=not model.paged)
        return make_runner(mode), None
    cache_dir = Path(options.cache_dir) if options.cache_dir else None
    if key is not None:
        result = read_result(key, cache_dir)
        if result is not None:
            make_runner, _ = _pack(model, form)
            return make_runner(result.mode), result.scratch
    prompts = check_prompts(model.loaded.vocab_size)
    judge = _judge(model.loaded.module, prompts)
    make_runner, step = _pack(model, form)
    modes = run_modes(paged=model.paged)
    if step is not None:
        modes = modes[:1]
    runner = first_agreeing(make_runner, modes, model.kv, prompts, judge)
    scratch = _measure(model, runner, step, options)
    if key is not None:
        result = StartupResult(runner.mode, 0, scratch)
        write_result(key, result, cache_dir)
    return runner, scratch


def _measure(
    model: LoadedParts,
    runner: ModelRunner,
    step: StepModel | None,
    options: EngineOptions,
) -> int:
    """Bytes that a step takes, as the plan is told of them."""
    rows = options.max_rows
    chunk = options.prefill_chunk
    measure = functools.partial(
        measure_scratch,
        runner,
        model.kv,
        rows=rows,
        chunk=chunk,
    )
    if step is None:
        return measure(context=model.context)
    # onnxruntime allocates here, which MLX does not count: a chunk and a batch of its
    # length are measured, longer contexts are computed. The plan doubles what it is
    # told, for what MLX keeps; nothing is kept here.
    computed = step.scratch_bytes(rows, chunk, model.context)
    measured_context = min(chunk, model.context)
    measured = resident_growth(lambda: measure(context=measured_context))
    return max(computed, measured) // 2


def _pack(
    model: LoadedParts,
    form: WeightForm,
) -> tuple[Callable[[RunMode], ModelRunner], StepModel | None]:
    """Pack the model's weights.

    Returns what makes runners, and the step if there is one.
    """
    module = model.loaded.module
    layout = model.layout
    vocab_size = model.loaded.vocab_size
    step = None
    if form == "step" and model.paged:
        decoder = find_decoder(module)
        if decoder is not None:
            step = build_step(decoder, layout, model.arenas)
    if step is None:
        pack_layers(module)
        reference = ReferenceBackend(model.arenas, model.copy_tokens)

        def make_layers_runner(mode: RunMode) -> ModelRunner:
            return ModelRunner(module, layout, reference, mode, vocab_size)

        return make_layers_runner, None
    step_model = StepModel(step, model.arenas)
    backend = StepBackend(model.arenas)

    def make_step_runner(mode: RunMode) -> ModelRunner:
        return StepRunner(step_model, layout, backend, mode, vocab_size)

    return make_step_runner, step_model


def _judge(module: nn.Module, prompts: list[list[int]]) -> Judge:
    """Holds logits of the prompts' last tokens against the module's in float32.

    Raises `UnsupportedModelError` for a model whose predictions do not survive int8
    activations.
    """
    count = len(prompts)
    with half_rounded(module):
        logits = _logits(module, [*prompts, *prompts])
    exact = logits[:count]
    rounded = logits[count:]
    explained = divergence(exact, rounded)
    if not explained <= _USEFUL:
        raise UnsupportedModelError(
            "activations in int8 change this model's predictions "
            f"by {explained:.2g} nats"
        )
    expected = [part[-_COMPARED:].copy() for part in exact]

    def judge(computed: Sequence[mx.array]) -> str | None:
        logits = [np.array(part) for part in computed]
        distance = divergence(expected, logits)
        limit = _TIMES * explained + _EXACT
        if distance <= limit:
            return None
        return f"predictions diverge by {distance:.2g} nats, more than {limit:.2g}"

    return judge


def divergence(expected: Sequence[FloatArray], others: Sequence[FloatArray]) -> float:
    """The mean Kullback-Leibler divergence of two sets of predictions, in nats.

    Both are logits `[tokens, vocab]` of several prompts.
    """
    total = 0.0
    count = 0
    for ours, theirs in zip(expected, others, strict=True):
        log_ours = _log_softmax(ours)
        log_ratios = log_ours - _log_softmax(theirs)
        terms = np.exp(log_ours) * log_ratios
        total += float(terms.sum())
        count += len(ours)
    return total / count


def _log_softmax(logits: FloatArray) -> npt.NDArray[np.float64]:
    largest = logits.max(axis=-1, keepdims=True)
    shifted = logits.astype(np.float64) - largest
    sums = np.exp(shifted).sum(axis=-1, keepdims=True)
    normalized: npt.NDArray[np.float64] = shifted - np.log(sums)
    return normalized


def _logits(module: nn.Module, prompts: list[list[int]]) -> list[FloatArray]:
    """All logits `[tokens, vocab]` of each prompt, in one call.

    Shorter prompts are filled up behind their ends.
    """
    longest = max(map(len, prompts))
    tokens = [prompt + [0] * (longest - len(prompt)) for prompt in prompts]
    logits = module(mx.array(tokens), cache=plain_caches(module))
    host_logits = np.array(logits.astype(mx.float32))
    return [host_logits[row, : len(prompt)] for row, prompt in enumerate(prompts)]
