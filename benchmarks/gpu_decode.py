"""The engine's own decode loop beside mlx-lm's BatchGenerator on a GPU: same model object, same run.

    python benchmarks/gpu_decode.py [--json FILE] [--check] [--rounds 3] [--cases 1x512 ...] [--shape 8b] [--bits 4]

Llama-3.2-1B's shape, or another, with random bfloat16 weights: right for speed, meaningless as text. A step is timed on the host
from one set of tokens to the next while every row decodes; a round's figure is the median of its steps, and the table has the
medians of the rounds, in which both sides take turns, and of the rounds' ratios. `--check` first compares greedy tokens with plain mlx-lm on small float32
models.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import logging
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import bootstrap

bootstrap.prepare()

import rvllm_local  # noqa: F401, I001  (first: it prepares the process for MLX)

import mlx.core as mx
import mlx_lm  # noqa: F401  (the real package: its generator is the peer)
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import make_prompt_cache

from benchmarks import gpu_record
from benchmarks.gpu_shapes import LLAMA_1B, SHAPES, NoText
from benchmarks.gpu_variants import (
    PARTS,
    leave_out,
    leave_out_checks,
    leave_out_timing,
    pad_steps,
    with_layers,
)
from rvllm_local.attention.probe import probe_layout
from rvllm_local import host
from rvllm_local.bench.metrics import Figure, spread
from rvllm_local.bench.text_table import show
from rvllm_local.engine.startup.build import EngineOptions, build_core
from rvllm_local.engine.core import EngineCore
from rvllm_local.models.families import build_model
from rvllm_local.models.loader import LoadedModel
from rvllm_local.types import Request, SamplingParams, StreamEvent

CASES = ((1, 512), (8, 512), (64, 512), (16, 8192))  # rows, tokens of context
CHECKED = ("llama", "gemma2", "gemma3_text", "qwen3", "gpt_oss")
WARMUP, STEPS = 8, 48
CHUNK = 512  # tokens of a prompt at once
ROOM = 640  # tokens of output that the arena has room for: rows decode while others still prefill


def loaded_shape(
    config: dict[str, Any] = LLAMA_1B, bits: int | None = None
) -> LoadedModel:
    """Random weights; with `bits` they are quantized in groups of 64.

    A layer's experts are alike: which of two a router takes by a hair changes nothing.
    """
    model = build_model(config)
    model.set_dtype(mx.bfloat16)
    for module in model.modules():
        if type(module).__name__ == "SwitchLinear":
            shape = module.weight.shape
            module.weight = mx.broadcast_to(module.weight[:1], shape)
    if bits is not None:
        nn.quantize(model, group_size=64, bits=bits)
    mx.eval(model.parameters())
    size = sum(value.nbytes for _, value in tree_flatten(model.parameters()))
    kind, vocab = config["model_type"], config["vocab_size"]
    return LoadedModel(
        model, config, f"{kind}-shape", kind, 16384, vocab, (), size, "random"
    )


def prompts(rows: int, context: int, vocab: int) -> list[list[int]]:
    return np.random.default_rng(0).integers(0, vocab, size=(rows, context)).tolist()


def engine_ms(core: EngineCore, rows: list[list[int]]) -> float:
    """Median milliseconds of a decode step with all rows decoding."""
    params = SamplingParams(max_tokens=ROOM, temperature=0, ignore_eos=True)
    seen: set[int] = set()
    for index, row in enumerate(rows):
        core.add(
            Request(f"row {index}", tuple(row), params, seed=0),
            functools.partial(note, seen, index),
        )
    while len(seen) < len(rows):
        core.step()
    for _ in range(WARMUP):
        core.step()
    times = []
    for _ in range(STEPS):
        began = time.perf_counter()
        core.step()
        times.append(time.perf_counter() - began)
    preemptions = core.stats()["preemptions"]
    assert preemptions == 0, (
        f"{preemptions} preemptions: the arena is too small for this measurement"
    )
    overlaps = core._runner.overlaps and core._scheduler.is_roomy
    print(f"steps overlap: {overlaps}", flush=True)
    core.close("measured")
    return statistics.median(times) * 1e3


def note(seen: set[int], index: int, _event: StreamEvent) -> None:
    seen.add(index)


def peer_ms(model: Any, rows: list[list[int]]) -> float:
    """The same of mlx-lm's BatchGenerator."""
    generator = BatchGenerator(model, max_tokens=4096, completion_batch_size=len(rows))
    generator.insert(rows, [4096] * len(rows))
    while len(generator.next_generated()) < len(rows):
        pass
    for _ in range(WARMUP):
        generator.next_generated()
    times = []
    for _ in range(STEPS):
        began = time.perf_counter()
        generator.next_generated()
        times.append(time.perf_counter() - began)
    generator.close()
    return statistics.median(times) * 1e3


def forget_settings() -> None:
    """The peer runs with MLX's own settings; MLX has not read ours before it first uses the device."""
    for name in host.MLX_SETTINGS:
        os.environ.pop(name, None)


def peer_apart(rows: int, context: int, model: list[str]) -> float:
    """`peer_ms` in a process of its own, with MLX's own settings, not with those that the engine makes."""
    command = [sys.executable, __file__, *model, "--peer", str(rows), str(context)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.split()[-1])


def check_tokens() -> None:
    """Greedy tokens of small float32 models, several rows at once, equal plain mlx-lm's."""
    from tests.support.tiny import tiny_model

    for architecture in CHECKED:
        model, config = tiny_model(architecture, seed=1)
        rows = [
            row[:length]
            for row, length in zip(
                prompts(4, 100, config["vocab_size"]), (1, 33, 64, 100), strict=True
            )
        ]
        expected = [reference(model, row, 32) for row in rows]
        loaded = LoadedModel(
            model,
            config,
            architecture,
            architecture,
            512,
            config["vocab_size"],
            (),
            0,
            "tiny",
        )
        core = build_core(
            loaded,
            NoText(),
            EngineOptions(kv_memory=2**24, max_rows=4, prefill_chunk=48),
        )
        found: list[list[int]] = [[] for _ in rows]
        for index, row in enumerate(rows):
            params = SamplingParams(max_tokens=32, temperature=0, ignore_eos=True)
            core.add(
                Request(f"r{index}", tuple(row), params, 0),
                functools.partial(keep, found[index]),
            )
        while core.has_work:
            core.step()
        stats = core.stats()
        print(
            f"{architecture}: {'same tokens' if found == expected else 'DIFFERENT TOKENS'}, "
            f"{stats['attention_backend']}, {stats['kernel_dispatches']} dispatches",
            flush=True,
        )


def keep(tokens: list[int], event: StreamEvent) -> None:
    tokens.extend(event.token_ids)


def reference(model: Any, prompt: list[int], count: int) -> list[int]:
    caches = make_prompt_cache(model)
    if len(prompt) > 1:
        model(mx.array([prompt[:-1]]), cache=caches)
    token, tokens = prompt[-1], []
    for _ in range(count):
        token = int(mx.argmax(model(mx.array([[token]]), cache=caches)[0, -1]).item())
        tokens.append(token)
    return tokens


def parsed_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--cases",
        nargs="+",
        default=[f"{rows}x{context}" for rows, context in CASES],
        metavar="ROWSxCONTEXT",
    )
    parser.add_argument(
        "--peer",
        nargs=2,
        type=int,
        metavar=("ROWS", "CONTEXT"),
        help="measure only the peer",
    )
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--bits", type=int, choices=(4, 8), help="quantized weights")
    parser.add_argument(
        "--least-rows",
        type=int,
        nargs="+",
        default=[1],
        help="rows of a compiled step, padding included; each is measured",
    )
    parser.add_argument("--layers", type=int, help="fewer than the shape has")
    parser.add_argument(
        "--unchecked",
        action="store_true",
        help="the quickest mode without the self-check: less is compiled",
    )
    parser.add_argument(
        "--ours",
        action="store_true",
        help="our products wherever they are right; MLX's are not timed or compiled",
    )
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--no-peer", action="store_true", help="measure only ours")
    parser.add_argument(
        "--attention", choices=("kernels", "reference"), default="kernels"
    )
    parser.add_argument("--without", nargs="+", choices=PARTS, default=[])
    return parser.parse_args()


def main() -> None:
    args = parsed_arguments()
    shape = with_layers(SHAPES[args.shape], args.layers)
    if args.peer:
        forget_settings()
        module = loaded_shape(shape, args.bits).module
        print(peer_ms(module, prompts(*args.peer, shape["vocab_size"])))
        return
    print("mlx", mx.__version__, mx.default_device(), mx.device_info(), flush=True)
    form = "%(relativeCreated)d ms: %(message)s"
    logging.basicConfig(stream=sys.stdout, format=form, level=logging.INFO)
    if args.unchecked:
        leave_out_checks()
    if args.ours:
        leave_out_timing()
    for part in args.without:
        leave_out(part)
    if args.check:
        check_tokens()
    measure_all(args, loaded_shape(shape, args.bits))


def measure_all(args: argparse.Namespace, loaded: LoadedModel) -> None:
    """Measure both sides of each case, and print and save what came out."""
    model_flags = ["--shape", args.shape]
    if args.layers:
        model_flags += ["--layers", str(args.layers)]
    if args.bits:
        model_flags += ["--bits", str(args.bits)]
    cases = [tuple(map(int, case.split("x"))) for case in args.cases]
    rounds: dict[str, list[tuple[float, float]]] = {}
    figures: dict[str, dict[str, Figure]] = {}
    print("| rows x context | mlx-lm | rvllm | ratio, median | rounds, ms |")
    print("|---|---|---|---|---|", flush=True)
    logging.info("the weights are made")
    for (rows, context), least in itertools.product(cases, args.least_rows):
        pad_steps(least)
        batch = prompts(rows, context, SHAPES[args.shape]["vocab_size"])
        pairs = []
        for _ in range(args.rounds):
            peer = math.nan
            if not args.no_peer:
                peer = peer_apart(rows, context, model_flags)
            engine = engine_once(
                loaded,
                batch,
                attention=args.attention,
                deterministic=args.deterministic,
            )
            print(f"{rows} x {context}: {peer:.2f} / {engine:.2f} ms", flush=True)
            pairs.append((peer, engine))
        name = f"{rows} x {context:,}"
        if least > 1:
            name += f" of {least}"
        stats = stats_of(pairs)
        rounds[name] = pairs
        figures[name] = stats
        each = ", ".join(f"{peer:.2f}/{engine:.2f}" for peer, engine in pairs)
        theirs = show(stats["mlx_lm"])
        ours = show(stats["rvllm"])
        ratio = stats["ratio"].value
        print(f"| {name} | {theirs} | {ours} | {ratio:.2f}x | {each} |", flush=True)
        if args.json:
            gpu_record.save(args.json, "gpu decode", figures, rounds_ms=rounds)


def stats_of(pairs: list[tuple[float, float]]) -> dict[str, Figure]:
    """A step of both in seconds, and the ratio of each round, as medians."""
    theirs, ours = zip(*pairs, strict=True)
    return {
        "mlx_lm": spread([ms / 1e3 for ms in theirs], "s"),
        "rvllm": spread([ms / 1e3 for ms in ours], "s"),
        "ratio": spread([peer / engine for peer, engine in pairs], "", "higher"),
    }


def engine_once(
    loaded: LoadedModel,
    batch: list[list[int]],
    *,
    attention: str,
    deterministic: bool = False,
) -> float:
    """`engine_ms` of a core of its own."""
    layout = probe_layout(loaded.module)
    room = 2**26
    for row in batch:
        room += layout.sequence_bytes(len(row) + ROOM, CHUNK)
    core = build_core(
        loaded,
        NoText(),
        EngineOptions(
            kv_memory=room,
            max_rows=len(batch),
            prefill_chunk=max(32, min(CHUNK, len(batch[0]))),
            deterministic=deterministic,
            attention=attention,
            draft="off",
        ),
    )
    assert core.stats()["attention_backend"] == attention, f"{attention} do not serve"
    runner = core._runner
    print(f"{runner.mode}, groups of {runner.row_group} rows", flush=True)
    found = engine_ms(core, batch)
    del core
    mx.clear_cache()
    return found


if __name__ == "__main__":
    main()
