"""Drafted tokens in the engine's decode loop on a GPU, beside the same engine without.

    python benchmarks/gpu_drafts.py [--shape 8b] [--bits 4] [--rows 1 8] [--right 0.6]

The weights are random, but for two things: blocks add little to the residual stream,
and the head knows a token's successor. So each answer counts up from the prompt's last
token, whatever rounding does, and a drafter can know it. It is right with the chance
`--right`, token by token. Depths are the engine's own, from acceptance and step times
that it measures. A figure is tokens a second of all rows, once each decodes and all
shapes are compiled; the answers are checked.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import bootstrap

bootstrap.prepare()

import rvllm_local  # noqa: F401, I001  (first: it prepares the process for MLX)

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten

from benchmarks import gpu_record
from benchmarks.gpu_shapes import SHAPES, NoText
from rvllm_local.bench.metrics import Figure, spread
from rvllm_local.engine.core import EngineCore
from rvllm_local.engine.drafting import Drafting
from rvllm_local.engine.speculation.contract import (
    NOTHING,
    Drawing,
    Proposal,
    alike,
)
from rvllm_local.engine.speculation.speculator import Speculator
from rvllm_local.engine.startup.build import EngineOptions, build_core
from rvllm_local.models.families import build_model
from rvllm_local.models.loader import LoadedModel
from rvllm_local.types import Request, SamplingParams, StreamEvent

CONTEXT = 512
WARMUP = 96  # tokens a row: acceptance is learned, and every shape is compiled
MEASURED = 192  # tokens a row
WRONG = 7919  # what is added to a token that is drafted wrong


class Counting:
    """Proposes the tokens that follow, each of them right by chance."""

    name = "known answers"
    runs_a_model = False
    reads_prompts = False

    def __init__(self, right: float, vocab_size: int) -> None:
        self._right = right
        self._vocab_size = vocab_size
        self._chance = np.random.default_rng(0)

    def open(self, token_ids: Sequence[int], drawing: Drawing) -> list[int]:
        return [token_ids[-1]]

    def close(self, stream: list[int]) -> None:
        """Nothing is kept elsewhere."""

    def read(self, stream: list[int], position: int, token_ids: Sequence[int]) -> None:
        """It has the tokens."""

    def push(
        self, stream: list[int], token_ids: Sequence[int], first_row: int = 0
    ) -> None:
        stream[0] = token_ids[-1]

    def propose(self, streams: Sequence[list[int]], most: int) -> list[Proposal]:
        return [self._of(stream[0], most) for stream in streams]

    def propose_after(
        self, stream: list[int], token_ids: Sequence[int], most: int
    ) -> Proposal:
        return NOTHING

    def _of(self, last: int, most: int) -> Proposal:
        tokens = []
        for ahead in range(1, most + 1):
            token = last + ahead
            if self._chance.random() >= self._right:
                token += WRONG
            tokens.append(token % self._vocab_size)
        return alike(tokens, "known")


class Row:
    """What came of one request."""

    def __init__(self, first: int) -> None:
        self.next = first
        self.count = 0

    def __call__(self, event: StreamEvent) -> None:
        for token in event.token_ids:
            assert token == self.next, f"{token} came, and {self.next} was to come"
            self.next = token + 1
            self.count += 1


def counting_model(config: dict[str, Any], bits: int | None) -> LoadedModel:
    """A model of that shape whose answers count up."""
    config = config | {"tie_word_embeddings": False}
    mx.random.seed(0)
    model = build_model(config)
    model.set_dtype(mx.bfloat16)
    width = config["hidden_size"]
    tokens = config["vocab_size"]
    embedding = mx.random.normal((tokens, width)).astype(mx.bfloat16)
    model.model.embed_tokens.weight = embedding
    model.lm_head.weight = mx.roll(embedding, 1, axis=0) * width**-0.5
    for layer in model.model.layers:
        for product in (layer.self_attn.o_proj, layer.mlp.down_proj):
            product.weight = product.weight * 0.01
    if bits is not None:
        nn.quantize(model, group_size=64, bits=bits)
    mx.eval(model.parameters())
    size = sum(value.nbytes for _, value in tree_flatten(model.parameters()))
    return LoadedModel(
        model, config, "llama-shape", "llama", 4096, tokens, (), size, "counting"
    )


def open_engine(
    loaded: LoadedModel, right: float | None, args: argparse.Namespace
) -> EngineCore:
    """An engine over the kernels; with `right` it drafts."""
    config = loaded.config
    values = config["num_key_value_heads"] * config["head_dim"]
    token_bytes = 2 * config["num_hidden_layers"] * values * 2
    options = EngineOptions(
        kv_memory=8 * 2048 * token_bytes + 2**26,
        max_rows=args.max_rows,
        deterministic=args.deterministic,
        prefill_chunk=512,
        draft="off" if right is None else "ngram",
    )
    core = build_core(loaded, NoText(), options)
    assert core.stats()["attention_backend"] == "kernels", "the kernels do not serve"
    if right is not None:
        drafter = Counting(right, loaded.vocab_size)
        speculator = Speculator(drafter, args.max_rows)
        overlaps = core._runner.overlaps
        drafting = Drafting(speculator, core._scheduler, overlaps=overlaps)
        core._drafting = core._committer._drafting = drafting
    return core


def prompts(count: int, vocab_size: int) -> list[list[int]]:
    chance = np.random.default_rng(0)
    rows: list[list[int]] = chance.integers(0, vocab_size, (count, CONTEXT)).tolist()
    for index, row in enumerate(rows):
        row[-1] = 1000 * (index + 1)  # it counts up from here
    return rows


_NUMBERS = itertools.count()


def tokens_a_second(core: EngineCore, num_rows: int, vocab_size: int) -> list[float]:
    """Tokens a second of all rows together, and tokens a step of each."""
    rows = []
    wanted = WARMUP + MEASURED
    params = SamplingParams(max_tokens=2 * wanted, temperature=0, ignore_eos=True)
    name = f"{next(_NUMBERS)}"
    for index, prompt in enumerate(prompts(num_rows, vocab_size)):
        row = Row(prompt[-1] + 1)
        rows.append(row)
        core.add(Request(f"{name} {index}", tuple(prompt), params, seed=0), row)
    while min(row.count for row in rows) < WARMUP:
        core.step()
    before = sum(row.count for row in rows)
    steps_before = core.num_steps
    began = time.perf_counter()
    while min(row.count for row in rows) < wanted:
        core.step()
    elapsed = time.perf_counter() - began
    count = sum(row.count for row in rows) - before
    steps = core.num_steps - steps_before
    for index in range(num_rows):
        core.cancel(f"{name} {index}")
    while core.has_work:
        core.step()
    return [count / elapsed, count / steps / num_rows]


def measure(args: argparse.Namespace) -> dict[str, dict[str, Figure]]:
    began = time.perf_counter()
    loaded = counting_model(SHAPES[args.shape], args.bits)
    print(f"model made after {time.perf_counter() - began:.0f} s", flush=True)
    rates: dict[int, list[list[float]]] = {rows: [] for rows in args.rows}
    for right in (None, args.right):
        core = open_engine(loaded, right, args)
        print(f"engine after {time.perf_counter() - began:.0f} s", flush=True)
        tokens_a_second(core, 1, loaded.vocab_size)  # the device wakes up
        for rows in args.rows:
            rate = tokens_a_second(core, rows, loaded.vocab_size)
            rates[rows].append(rate)
            print(
                f"{rows} rows, right {right}: {rate[0]:.1f} tokens/s, "
                f"{rate[1]:.2f} tokens a step, after {time.perf_counter() - began:.0f} s",
                flush=True,
            )
        speculator = core._drafting._speculator
        if speculator is not None:
            print("seconds a step:", speculator.costs.measured(), flush=True)
        core.close("measured")
        del core
    figures = {}
    for rows, (plain, drafted) in rates.items():
        ratio = drafted[0] / plain[0]
        print(f"{rows} rows: {ratio:.2f}x", flush=True)
        figures[f"{rows} rows"] = {
            "plain": spread([plain[0]], "tokens/s", "higher"),
            "drafted": spread([drafted[0]], "tokens/s", "higher"),
            "tokens_a_step": spread([drafted[1]], "", "higher"),
            "ratio": spread([ratio], "", "higher"),
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--bits", type=int, choices=(4, 8), help="quantized weights")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--max-rows", type=int, default=32, help="tokens a step")
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--right", type=float, default=0.6)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print("mlx", mx.__version__, mx.default_device(), mx.device_info(), flush=True)
    figures = measure(args)
    if args.json:
        details = {"right": args.right, "bits": args.bits, "shape": args.shape}
        gpu_record.save(args.json, "gpu drafts", figures, **details)


if __name__ == "__main__":
    main()
