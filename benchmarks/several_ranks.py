"""Serves tiny random models of the families that mlx-lm can divide with several ranks on loopback, and holds the answers
against mlx-lm's own divided forward and against one process.

    python -m benchmarks.several_ranks [--ranks 2 4] [--families llama ...] [--pipeline] [--forward-only] [--json FILE]

With --pipeline each rank has layers of its own, in place of a part of each. A line for each family and number of ranks: what was compared, and how long it took. Ends with status 1 if anything
differs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import rvllm_local  # noqa: F401  (first: it prepares the process for MLX)
from rvllm_local import LLM, SamplingParams
from rvllm_local.attention.probe import probe_layout
from rvllm_local.engine.startup.pipeline_stages import plan_stages
from rvllm_local.models.describe import describe
from rvllm_local.models.locate import locate
from rvllm_local.models.sharding import divide_outline
from rvllm_local.options import EngineOptions
from tests.support.ranks import (
    FAMILIES,
    PIPELINES,
    both_ways,
    save_for_pipeline,
    save_for_ranks,
    served_by_ranks,
)

NUM_TOKENS = 12
GREEDY = SamplingParams(max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True)
SAMPLED = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.9, seed=7, top_p=0.9)
LONG = SamplingParams(max_tokens=70, temperature=0, ignore_eos=True)
LENGTHS = (1, 2, 31, 32, 33, 64, 97, 150)
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}}
FORMAT = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
# Room for three of the eight long answers at a time.
TIGHT_BLOCKS = 12

Answers = list[tuple[int, ...]]


def prompts() -> list[list[int]]:
    """Eight prompts, on both sides of the blocks' ends."""
    batch = []
    for number, length in enumerate(LENGTHS):
        batch.append([(7 * place + 13 * number) % 380 for place in range(length)])
    return batch


def tokens_of(llm: LLM, batch: list[list[int]], params: SamplingParams) -> Answers:
    """The tokens of all answers to a batch that comes at once."""
    return [answer.token_ids for answer in llm.generate(batch, params)]


def at_once(llm: LLM) -> Answers:
    """Eight greedy requests at once."""
    return tokens_of(llm, prompts(), GREEDY)


def with_seeds(llm: LLM) -> Answers:
    """Eight requests that draw, at once."""
    return tokens_of(llm, prompts(), SAMPLED)


def choices(llm: LLM) -> Answers:
    """Three choices that fork after one prompt, a part of whose last block is full."""
    params = SamplingParams(
        max_tokens=NUM_TOKENS, temperature=0.9, seed=5, n=3, ignore_eos=True
    )
    return [answer.token_ids for answer in llm.generate(prompts()[4], params)]


def warm(llm: LLM) -> Answers:
    """The same prompt again, and one that goes on after the first answer."""
    prompt = prompts()[-1]
    (first,) = llm.generate(prompt, LONG)
    (again,) = llm.generate(prompt, LONG)
    if again.cached_tokens == 0:
        raise SystemExit("a prompt that came again was not read from the cache")
    longer = [*prompt, *first.token_ids, 5, 6, 7]
    (later,) = llm.generate(longer, GREEDY)
    return [first.token_ids, again.token_ids, later.token_ids]


def grammar(llm: LLM) -> Answers:
    """An answer that a schema binds."""
    messages = [{"role": "user", "content": "a color"}]
    params = SamplingParams(max_tokens=30, temperature=0)
    (answer,) = llm.chat(messages, params, response_format=FORMAT)
    return [answer.token_ids]


def cancelled(llm: LLM) -> Answers:
    """One request is cancelled in the middle, and another one goes on."""
    stream = iter(llm.stream(prompts()[3], LONG))
    next(stream)
    stream.close()
    return tokens_of(llm, prompts()[:2], GREEDY)


def crowded(llm: LLM) -> Answers:
    """Eight answers that do not fit at once."""
    batch = [[token] * 30 for token in range(8)]
    return tokens_of(llm, batch, LONG)


CASES: dict[str, Callable[[LLM], Answers]] = {
    "at once": at_once,
    "seeds": with_seeds,
    "choices": choices,
    "warm": warm,
    "grammar": grammar,
    "cancel": cancelled,
    "room": crowded,
}


def divided_forward(folders: list[Path], ranks: int, pipeline: bool) -> dict[str, bool]:
    """For each model whether the calls give the tokens of mlx-lm's forward on all ranks."""
    tokens = both_ways(folders, ranks, pipeline=pipeline, timeout=None)
    return {name: plain == paged for name, (plain, paged) in tokens.items()}


def check_blocks(llm: LLM) -> dict[str, float | int | str]:
    """The engine's counters, once nothing is open. Raises if a block is missing."""
    stats = llm.stats()
    if stats["blocks_free"] != stats["blocks_total"] or stats["blocks_swapped"]:
        raise SystemExit(f"blocks are missing: {stats}")
    return stats


def serve(
    folder: Path, ranks: int, expected: dict[str, Answers], pipeline: bool
) -> list[str]:
    """The cases whose answers differ from one process's."""
    differing = []
    memory = TIGHT_BLOCKS * block_bytes(folder, ranks, pipeline)
    with served_by_ranks(
        folder,
        ranks,
        pipeline=pipeline,
        kv_memory=memory,
        max_rows=8,
        prefill_chunk=48,
    ) as llm:
        for name, case in CASES.items():
            if case(llm) != expected[name]:
                differing.append(name)
            check_blocks(llm)
        if check_blocks(llm)["preemptions"] == 0:
            raise SystemExit("nothing had to make room: give fewer blocks")
    return differing


def block_bytes(folder: Path, ranks: int, pipeline: bool) -> int:
    """Bytes of a block of all layers that the largest of so many ranks has."""
    model = describe(locate(str(folder)))
    if pipeline:
        options = EngineOptions(ranks=ranks, pipeline=True)
        layouts = [stage.layout for stage in plan_stages(model, options)]
    else:
        divide_outline(model.module, model.config, ranks)
        layouts = [probe_layout(model.module, quantized=False)]
    sizes = []
    for layout in layouts:
        sizes.append(sum(shape.block_bytes for shape in layout.groups))
    return max(sizes)


def answers_alone(folder: Path) -> dict[str, Answers]:
    """What one process answers, with room for all."""
    with LLM(str(folder), kv_memory="16MB", max_rows=8, prefill_chunk=48) as llm:
        return {name: case(llm) for name, case in CASES.items()}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--families", nargs="+", default=[])
    parser.add_argument("--pipeline", action="store_true")
    parser.add_argument("--forward-only", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results: list[dict[str, object]] = []
    is_right = True
    pipeline = arguments.pipeline
    save = save_for_pipeline if pipeline else save_for_ranks
    with tempfile.TemporaryDirectory() as root:
        folders = {}
        for family in arguments.families or (PIPELINES if pipeline else FAMILIES):
            folders[family] = save(family, Path(root) / family)
        expected = {}
        for family, folder in folders.items():
            if not arguments.forward_only:
                expected[family] = answers_alone(folder)
        for ranks in arguments.ranks:
            forward = divided_forward(list(folders.values()), ranks, pipeline)
            print(json.dumps({"ranks": ranks, "divided forward": forward}), flush=True)
            is_right = is_right and all(forward.values())
            if arguments.forward_only:
                continue
            for family, folder in folders.items():
                began = time.monotonic()
                differing = serve(folder, ranks, expected[family], pipeline)
                seconds = time.monotonic() - began
                result = {
                    "family": family,
                    "ranks": ranks,
                    "pipeline": pipeline,
                    "differing": differing,
                    "seconds": round(seconds, 1),
                }
                print(json.dumps(result), flush=True)
                results.append(result)
                is_right = is_right and not differing
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
