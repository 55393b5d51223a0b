"""Puts the core of a pooled model together; its memory is planned before it is taken."""

from __future__ import annotations

import mlx.core as mx

from rvllm_local import host
from rvllm_local.engine.detokenizer import Vocabulary
from rvllm_local.engine.limits import EngineLimits, Pools
from rvllm_local.engine.pooled_core import PooledCore
from rvllm_local.errors import UnsupportedModelError
from rvllm_local.machine import device_memory
from rvllm_local.memory.plan import PROCESS_BYTES, MemoryPlan, default_reserve
from rvllm_local.memory.scratch import ModelSizes, scratch_bytes
from rvllm_local.models.config_file import vocab_size
from rvllm_local.models.describe import num_heads, widest
from rvllm_local.models.encoders.load import (
    load_pooled,
    longest_input,
    pooled_config,
)
from rvllm_local.models.encoders.setup import PooledSetup
from rvllm_local.models.locate import ModelFiles
from rvllm_local.options import EngineOptions

_MOST_ROWS = 256  # of a batch, in the plan
_MOST_OPEN = 65_536


def open_pooled_core(
    files: ModelFiles,
    setup: PooledSetup,
    vocabulary: Vocabulary,
    options: EngineOptions,
) -> PooledCore:
    """A core ready for its first text.

    Raises `MemoryBudgetError`, `ModelFileError` and `UnsupportedModelError`.
    """
    plan = plan_pooled(files, setup, options)
    plan.check()
    answer_ids = [_token_of(vocabulary, word) for word in setup.answers]
    model = load_pooled(files, setup, answer_ids)
    limits = EngineLimits(
        vocab_size=model.vocab_size,
        context_length=plan.context,
        arena_tokens=plan.context,
        max_open=_MOST_OPEN,
        pools=Pools(setup.kind, model.dimensions, dict(setup.prompts), setup.pair_form),
    )
    return PooledCore(
        model,
        limits,
        plan.lines(),
        plan.weight_form,
        is_paced=not host.runs_last(),
    )


def _token_of(vocabulary: Vocabulary, word: str) -> int:
    """The token that a word is. Raises `UnsupportedModelError` if it is several."""
    token_ids = vocabulary.encode(word, bos=False)
    if len(token_ids) != 1:
        raise UnsupportedModelError(
            f"this reranker answers with {word!r}, which is {len(token_ids)} tokens of "
            "its tokenizer, not one"
        )
    return token_ids[0]


def plan_pooled(
    files: ModelFiles,
    setup: PooledSetup,
    options: EngineOptions,
) -> MemoryPlan:
    """What a pooled model takes: weights and one batch's scratch, no KV.

    Raises `ModelFileError` and `UnsupportedModelError` for a bad configuration.
    """
    config = pooled_config(files, setup)
    context = longest_input(config, setup)
    if options.context_length is not None:
        context = min(context, options.context_length)
    stored = sum(path.stat().st_size for path in files.weight_paths())
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    sizes = ModelSizes(
        widest(config, "hidden_size"),
        widest(config, "intermediate_size"),
        0,  # no logits
        num_heads(config),
        4 if on_cpu else 2,
    )
    vocab_size(config)  # raises for one that is none
    scratch = scratch_bytes(sizes, _MOST_ROWS, context, context, 0)
    device = device_memory()
    reserve = options.system_reserve
    if reserve is None:
        reserve = default_reserve(device)
    return MemoryPlan(
        weights=_weights_bytes(stored, on_cpu, config),
        kv_arena=0,
        scratch=scratch,
        process=PROCESS_BYTES,
        device=device,
        reserve=reserve,
        context=context,
        rows=_MOST_ROWS,
        bytes_per_token=0,
        disk_bytes_per_token=0,
        arena_tokens=context,
        weight_form="float32" if on_cpu else "as stored",
    )


def _weights_bytes(stored: int, on_cpu: bool, config: dict[str, object]) -> int:
    """Bytes in memory: on a CPU halves are widened, and quantized ones more."""
    if not on_cpu:
        return stored
    dtype = str(config.get("dtype") or config.get("torch_dtype"))
    if config.get("quantization"):
        return 8 * stored
    return stored if dtype == "float32" else 2 * stored
