"""A decode step of a divided model: the engine's beside mlx-lm's divided loop, on as many GPUs as there are ranks.

    python benchmarks/gpu_ranks.py [--shape 8b] [--ranks 2] [--rows 1 8 32] [--backend nccl] [--no-peer] [--json FILE]

Random weights are made in place, in bfloat16; a rank keeps its part. Each of engine and mlx-lm runs in processes of its
own, with its own settings of MLX, one GPU a rank. All ranks make the same calls in lockstep and take the largest logit,
one step in flight where that can be; rank 0's medians are printed as they come, with what a sum of one row takes. With
--ranks 1 the engine is measured on one GPU. `--shape tiny --backend ring` runs on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))

from rvllm_local import host

CONTEXT = 64  # tokens of each row before the first measured step
WARMUP, STEPS = 8, 40
ROOM = 256  # tokens of a row
LARGE: dict[str, Any] = {  # 64 layers of width 5,120
    "hidden_size": 5120,
    "num_hidden_layers": 64,
    "intermediate_size": 25600,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
TINY: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "vocab_size": 384,
}
SHAPES = {"8b": {}, "64x5120": LARGE, "tiny": TINY}
_NCCL_PORT = 12345


def config_of(shape: str) -> dict[str, Any]:
    """The configuration of a shape."""
    from benchmarks.gpu_shapes import LLAMA_8B

    return {**LLAMA_8B, **SHAPES[shape]}


def part_of_model(config: dict[str, Any], group: Any) -> Any:
    """This rank's part of a model with random weights: the same model on all ranks."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    from rvllm_local.models.families import build_model
    from rvllm_local.models.sharding import divide

    mx.random.seed(0)
    module = build_model(config)
    module.set_dtype(mx.bfloat16)
    if group.size() > 1:
        divide(module, config, group)
    for _, parameter in tree_flatten(module.parameters()):
        mx.eval(parameter)
    mx.clear_cache()
    module.eval()
    return module


def prompts(rows: int, vocab: int) -> list[list[int]]:
    """The rows' prompts, all of one length."""
    batch = []
    for row in range(rows):
        batch.append([(7 * place + 13 * row) % vocab for place in range(CONTEXT)])
    return batch


def engine_ms(module: Any, config: dict[str, Any], ranks: int, rows: int) -> float:
    """Median milliseconds of the engine's step."""
    import mlx.core as mx
    import numpy as np

    from rvllm_local.attention.geometry import DecodeRow, TokenChunk

    runner, kv = engine_parts(module, config, ranks, rows)
    tables = []
    for prompt in prompts(rows, config["vocab_size"]):
        of_row = kv.new_sequence()
        kv.grow(of_row, ROOM)
        runner.prefill(TokenChunk(of_row, 0, prompt[:-1]))
        tables.append(of_row)
    tokens = [prompt[-1] for prompt in prompts(rows, config["vocab_size"])]
    previous = None
    times = []
    for step in range(WARMUP + STEPS):
        began = time.perf_counter()
        batch = []
        for row in range(rows):
            source = None if previous is None else row
            position = CONTEXT - 1 + step
            batch.append(DecodeRow(tables[row], position, tokens[row], source))
        sampled = runner.sample(batch, None, previous).tokens
        if previous is not None:
            np.array(previous)  # the step before is over
        if runner.overlaps:
            assert isinstance(sampled, mx.array)
            previous = sampled
        else:
            tokens = [int(token) for token in np.array(sampled)[:rows]]
        times.append(time.perf_counter() - began)
    for of_row in tables:
        kv.release(of_row)
    return 1e3 * statistics.median(times[WARMUP:])


def engine_parts(
    module: Any, config: dict[str, Any], ranks: int, rows: int
) -> tuple[Any, Any]:
    """A runner over the part, not checked, and its tables."""
    import dataclasses

    from rvllm_local.engine.startup.choose_runner import choose_runner
    from rvllm_local.engine.startup.open_runner import load_parts
    from rvllm_local.models.loader import LoadedModel
    from rvllm_local.models.sharding import parameter_bytes
    from rvllm_local.options import EngineOptions

    size = parameter_bytes(module)
    vocab = config["vocab_size"]
    loaded = LoadedModel(
        module, config, "random", "llama", ROOM, vocab, (), size, "random"
    )
    heads = config["num_key_value_heads"] // ranks
    token_bytes = 2 * 4 * heads * config["head_dim"] * config["num_hidden_layers"]
    options = EngineOptions(
        ranks=ranks,
        kv_memory=2 * rows * ROOM * token_bytes,
        max_rows=rows,
        self_check=False,
        system_reserve=0,
    )
    parts, _ = load_parts(loaded, options, ())
    parts = dataclasses.replace(parts, ranks=ranks)
    runner, _ = choose_runner(parts, options, None)
    return runner, parts.kv


def peer_ms(module: Any, config: dict[str, Any], rows: int) -> float:
    """Median milliseconds of a step of mlx-lm's model and caches, one in flight."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    caches = make_prompt_cache(module)
    batch = mx.array(prompts(rows, config["vocab_size"]))
    mx.eval(module(batch[:, :-1], cache=caches))
    tokens = batch[:, -1]
    before = None
    times = []
    for _ in range(WARMUP + STEPS):
        began = time.perf_counter()
        logits = module(tokens[:, None], cache=caches)
        tokens = mx.argmax(logits[:, -1], axis=-1)
        mx.async_eval(tokens)
        if before is not None:
            before.tolist()
        before = tokens
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times[WARMUP:])


def rank_main(arguments: argparse.Namespace) -> None:
    """One rank, in a process of its own."""
    if arguments.way == "engine":
        host.prepare()
    import mlx.core as mx

    from rvllm_local.distributed.measuring import measure

    if arguments.ranks > 1:
        group = mx.distributed.init(strict=True, backend=arguments.backend)
    else:
        group = mx.distributed.init()
    config = config_of(arguments.shape)
    began = time.perf_counter()
    module = part_of_model(config, group)
    tell(group, {"seconds to make the weights": time.perf_counter() - began})
    if group.size() > 1 and arguments.way == "engine":
        times = measure(group)
        tell(group, {"sum_us": 1e6 * times.row_s, "MB/s": times.bytes_per_s / 1e6})
    for rows in arguments.rows:
        if arguments.way == "engine":
            milliseconds = engine_ms(module, config, group.size(), rows)
        else:
            milliseconds = peer_ms(module, config, rows)
        tell(
            group,
            {
                "way": arguments.way,
                "shape": arguments.shape,
                "ranks": group.size(),
                "rows": rows,
                "ms": round(milliseconds, 3),
            },
        )


def tell(group: Any, figures: dict[str, Any]) -> None:
    """Print a line, on rank 0."""
    if group.rank() == 0:
        print(json.dumps(figures), flush=True)


def run_way(arguments: argparse.Namespace, way: str, folder: str) -> list[str]:
    """Start the ranks of one way, and wait for them. Returns rank 0's lines."""
    command = [sys.executable, str(HERE), "--way", way, "--shape", arguments.shape]
    command += ["--ranks", str(arguments.ranks), "--backend", arguments.backend]
    command += ["--rows", *[str(rows) for rows in arguments.rows]]
    processes = []
    for rank in range(arguments.ranks):
        environment = dict(os.environ)
        if arguments.ranks > 1:
            environment.update(rank_environment(arguments, rank, folder))
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
    lines = []
    assert processes[0].stdout is not None
    for line in processes[0].stdout:
        print(line, end="", flush=True)
        lines.append(line)
    for process in processes:
        if process.wait() != 0:
            raise SystemExit(f"a rank ended with status {process.returncode}")
    return lines


def rank_environment(
    arguments: argparse.Namespace, rank: int, folder: str
) -> dict[str, str]:
    """What MLX reads of a rank's environment."""
    environment = {"MLX_RANK": str(rank), "MLX_WORLD_SIZE": str(arguments.ranks)}
    if arguments.backend == "nccl":
        environment["NCCL_HOST_IP"] = "127.0.0.1"
        environment["NCCL_PORT"] = str(_NCCL_PORT)
        environment["CUDA_VISIBLE_DEVICES"] = str(rank)
    else:
        environment["MLX_HOSTFILE"] = str(Path(folder) / "ring.json")
    return environment


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=list(SHAPES), default="8b")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--backend", choices=["nccl", "ring"], default="nccl")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--way", choices=["engine", "peer"], help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.way is not None:
        rank_main(arguments)
        return 0
    from rvllm_local.distributed.meeting import free_addresses

    lines = []
    with tempfile.TemporaryDirectory() as folder:
        ways = ["engine"] if arguments.no_peer else ["engine", "peer"]
        for way in ways:
            addresses = [[address] for address in free_addresses(arguments.ranks)]
            (Path(folder) / "ring.json").write_text(json.dumps(addresses))
            lines += run_way(arguments, way, folder)
    if arguments.json:
        rows = [json.loads(line) for line in lines]
        arguments.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
