"""One of several ranks that hold the engine's calls against mlx-lm's divided forward.

`python -m tests.support.rank_group [--pipeline] RANK ADDRESS,ADDRESS... FOLDER...`: the
addresses of the ring, then models. Rank 0 prints the tokens of each model, both ways, as
JSON.
"""

from __future__ import annotations

import argparse
import json

import mlx.core as mx
import mlx.nn as nn

from rvllm_local.attention.geometry import DecodeRow, TokenChunk
from rvllm_local.distributed.frames import Meeting
from rvllm_local.distributed.meeting import form_group
from rvllm_local.engine.startup.open_part import ModelPart, open_part, plan_part
from rvllm_local.models.locate import locate
from rvllm_local.options import EngineOptions

PROMPT = [(7 * index * index + 3 * index) % 380 for index in range(75)]
NUM_TOKENS = 8


def plain_tokens(model: nn.Module) -> list[int]:
    """mlx-lm's caches and attention, over the part of the model that is here."""
    from mlx_lm.models.cache import make_prompt_cache

    caches = make_prompt_cache(model)
    mx.eval(model(mx.array([PROMPT[:-1]]), cache=caches))
    token, tokens = PROMPT[-1], []
    for _ in range(NUM_TOKENS):
        logits = model(mx.array([[token]]), cache=caches)
        token = int(mx.argmax(logits[0, -1]).item())
        tokens.append(token)
    return tokens


def paged_tokens(part: ModelPart) -> list[int]:
    """The same through the arenas, the prompt in odd chunks."""
    kv, runner = part.parts.kv, part.runner
    tables = kv.new_sequence()
    for start in range(0, len(PROMPT) - 1, 29):
        end = min(start + 29, len(PROMPT) - 1)
        kv.grow(tables, end)
        runner.prefill(TokenChunk(tables, start, PROMPT[start:end]))
    token, tokens = PROMPT[-1], []
    for position in range(len(PROMPT) - 1, len(PROMPT) - 1 + NUM_TOKENS):
        kv.grow(tables, position + 1)
        logits = runner.decode([DecodeRow(tables, position, token)])
        token = int(mx.argmax(logits[0]).item())
        tokens.append(token)
    return tokens


def main(
    rank: int, addresses: list[str], folders: list[str], *, pipeline: bool
) -> None:
    options = EngineOptions(
        ranks=len(addresses),
        pipeline=pipeline,
        kv_memory=2**22,
        context_length=128,
        max_rows=2,
    )
    files = [locate(folder) for folder in folders]
    for model in files:
        plan_part(model, options, rank)
    group = form_group(Meeting("ring", tuple(addresses)), rank)
    both_ways = {}
    for model in files:
        part = open_part(model, options, group)
        plain = plain_tokens(part.parts.loaded.module)
        both_ways[model.name] = (plain, paged_tokens(part))
    if rank == 0:
        print(json.dumps(both_ways))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--pipeline", action="store_true")
    parser.add_argument("rank", type=int)
    parser.add_argument("addresses", type=lambda text: text.split(","))
    parser.add_argument("folders", nargs="+")
    given = parser.parse_args()
    main(given.rank, given.addresses, given.folders, pipeline=given.pipeline)
