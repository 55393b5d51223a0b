"""Opens the smaller model that drafts for another, or says why it cannot."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx

from rvllm_local.engine.detokenizer import Vocabulary
from rvllm_local.engine.head_drafter import EndsOfOneCall, HeadDrafter
from rvllm_local.engine.model_drafter import ModelDrafter
from rvllm_local.engine.startup.open_runner import (
    OpenedRunner,
    open_runner,
    runner_of,
)
from rvllm_local.engine.startup.planning import drafter_options
from rvllm_local.errors import ConfigError
from rvllm_local.models.describe import describe
from rvllm_local.models.locate import locate
from rvllm_local.models.mtp import share_ends, watch_end
from rvllm_local.options import EngineOptions
from rvllm_local.text.tokenizer_files import read_tokenizer


def open_drafter(
    opened: OpenedRunner,
    text: Vocabulary,
    options: EngineOptions,
) -> ModelDrafter:
    """The model that `options.draft` names, with keys and values of its own.

    It has room for as many tokens as the model that it drafts for. Raises
    `ConfigError` if it has another vocabulary, or cannot compute rows together.
    """
    name = options.draft
    cache_dir = Path(options.cache_dir) if options.cache_dir else None
    files = locate(name, cache_dir=cache_dir)
    vocab_size = opened.runner.vocab_size
    _check_vocabulary(name, read_tokenizer(files), text, vocab_size)
    module = describe(files).module
    smaller_options = drafter_options(options, module, opened.plan.arena_tokens)
    smaller = open_runner(files, smaller_options)
    # Each opening lets MLX keep what one model needs for its next calls.
    mx.set_cache_limit((opened.plan.scratch + smaller.plan.scratch) // 2)
    runner = smaller.runner
    # What it drafted it takes back, which recurrent layers do for their model alone.
    has_rows = runner.verifies and not runner.mode.dense
    if not has_rows or runner.layout.has_state:
        raise ConfigError(
            f"draft cannot be {name!r:.80}: its architecture does not compute several "
            "rows, or several tokens of a row, in one call, or cannot take them back; "
            'take another model or "ngram"'
        )
    return ModelDrafter(
        name,
        runner,
        smaller.parts.kv,
        vocab_size=vocab_size,
        context=smaller.parts.context,
        prefill_chunk=options.prefill_chunk,
    )


def open_head(opened: OpenedRunner, options: EngineOptions) -> HeadDrafter:
    """The model's own head, with keys and values of its own, as `open_drafter`."""
    head = opened.parts.loaded.head
    assert head is not None, "it is loaded with the model"
    share_ends(head.module, opened.parts.loaded.module)  # it may be packed meanwhile
    head_options = drafter_options(options, head.module, opened.plan.arena_tokens)
    opened_head = runner_of(head, head_options)
    mx.set_cache_limit((opened.plan.scratch + opened_head.plan.scratch) // 2)
    ends = watch_end(opened.parts.loaded.module)
    own_ends = watch_end(head.module)
    ends.is_wanted = True
    own_ends.is_wanted = True
    opened.runner.hook = EndsOfOneCall(ends)
    return HeadDrafter(
        opened_head.runner,
        opened_head.parts.kv,
        head.module.model.embed_tokens,
        ends=ends,
        own_ends=own_ends,
        context=opened_head.parts.context,
    )


def _check_vocabulary(
    name: str,
    smaller: Vocabulary,
    larger: Vocabulary,
    vocab_size: int,
) -> None:
    """Raise `ConfigError` with the first token that the two tokenizers spell unlike."""
    for token in range(vocab_size):
        spelled = smaller.id_to_bytes(token)
        expected = larger.id_to_bytes(token)
        if spelled != expected:
            raise ConfigError(
                f"draft cannot be {name!r:.80}: its token {token} is {spelled!r:.40}, "
                f"and the model's is {expected!r:.40}; both need the same tokenizer"
            )
