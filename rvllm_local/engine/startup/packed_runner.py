"""Makes a runner over packed weights on a CPU, and proves it.

What it predicts is held against float32 arithmetic of the same weights. The packed product rounds activations to int8;
so does that arithmetic for a second opinion, and how far both opinions diverge is what rounding explains.
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
    """A runner over the packed model, and the bytes that a step takes (None if nothing is checked).

    Packs the model's weights. Raises `UnsupportedModelError` if its logits are not those of float32 arithmetic;
    the model is of no use then.
    """
    runner, scratch = _choose(model, form, options, key)
    is_step = isinstance(runner.block_io, StepBackend)
    runner.weight_form = form_in_words("step" if is_step else "layers")
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
    cache_dir = Path(options.cache_dir) if options.cache_dir else None
    if not options.self_check:
        key = None
    result = None if key is None else read_result(key, cache_dir)
    modes = run_modes(paged=model.paged)
    if result is not None:
        runner, _ = _packed(model, form)
        return runner(result.mode), result.scratch
    if not options.self_check:
        runner, _ = _packed(model, form)
        return runner(RunMode(model.paged, dense=not model.paged)), None
    prompts = check_prompts(model.loaded.vocab_size)
    judge = _judge(model.loaded.module, prompts)
    make, step = _packed(model, form)
    if step is not None:
        modes = modes[:1]
    chosen = first_agreeing(make, modes, model.kv, prompts, judge)
    rows, chunk = options.max_rows, options.prefill_chunk
    measure = functools.partial(
        measure_scratch, chosen, model.kv, rows=rows, chunk=chunk
    )
    if step is not None:
        # onnxruntime allocates here, which MLX does not count: a chunk and a batch of
        # its length are measured, longer contexts are computed. The plan doubles what
        # it is told, for what MLX keeps; nothing is kept here.
        computed = step.scratch_bytes(rows, chunk, model.context)
        measured = resident_growth(lambda: measure(context=min(chunk, model.context)))
        scratch = max(computed, measured) // 2
    else:
        scratch = measure(context=model.context)
    if key is not None:
        write_result(key, StartupResult(chosen.mode, 0, scratch), cache_dir)
    return chosen, scratch


def _packed(
    model: LoadedParts, form: WeightForm
) -> tuple[Callable[[RunMode], ModelRunner], StepModel | None]:
    """What makes runners over the model's weights, which are packed now; and the step, if it is one."""
    module, layout = model.loaded.module, model.layout
    vocab_size = model.loaded.vocab_size
    step = None
    decoder = find_decoder(module) if form == "step" and model.paged else None
    if decoder is not None:
        step = build_step(decoder, layout, model.arenas)
    if step is None:
        pack_layers(module)
        reference = ReferenceBackend(model.arenas, model.copy_tokens)
        return lambda mode: ModelRunner(
            module, layout, reference, mode, vocab_size
        ), None
    called = StepModel(step, model.arenas)
    backend = StepBackend(model.arenas)
    return lambda mode: ModelRunner(called, layout, backend, mode, vocab_size), called


def _judge(module: nn.Module, prompts: list[list[int]]) -> Judge:
    """What holds logits of the prompts' last tokens against those that the module computes in float32.

    Raises `UnsupportedModelError` for a model whose predictions do not survive int8 activations.
    """
    count = len(prompts)
    with half_rounded(module):
        logits = _logits(module, [*prompts, *prompts])
    exact, rounded = logits[:count], logits[count:]
    explained = divergence(exact, rounded)
    if not explained <= _USEFUL:
        raise UnsupportedModelError(
            f"activations in int8 change this model's predictions by {explained:.2g} nats"
        )
    expected = [part[-_COMPARED:].copy() for part in exact]

    def judge(computed: Sequence[mx.array]) -> str | None:
        distance = divergence(expected, [np.array(part) for part in computed])
        limit = _TIMES * explained + _EXACT
        if distance <= limit:
            return None
        return f"predictions diverge by {distance:.2g} nats, more than {limit:.2g}"

    return judge


def divergence(expected: Sequence[FloatArray], others: Sequence[FloatArray]) -> float:
    """The mean Kullback-Leibler divergence, in nats, of what two sets of logits `[tokens, vocab]` predict."""
    sums, count = 0.0, 0
    for ours, theirs in zip(expected, others, strict=True):
        likely = _log_softmax(ours)
        sums += float((np.exp(likely) * (likely - _log_softmax(theirs))).sum())
        count += len(ours)
    return sums / count


def _log_softmax(logits: FloatArray) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    normalized: npt.NDArray[np.float64] = shifted - np.log(
        np.exp(shifted).sum(axis=-1, keepdims=True)
    )
    return normalized


def _logits(module: nn.Module, prompts: list[list[int]]) -> list[FloatArray]:
    """All logits `[tokens, vocab]` of each prompt, in one call; shorter prompts are filled up behind their ends."""
    longest = max(map(len, prompts))
    tokens = [prompt + [0] * (longest - len(prompt)) for prompt in prompts]
    logits = module(mx.array(tokens), cache=plain_caches(module)).astype(mx.float32)
    host = np.array(logits)
    return [host[row, : len(prompt)] for row, prompt in enumerate(prompts)]
