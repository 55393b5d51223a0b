"""Serves a model that does not fit one rank's memory with two ranks, each of which has memory for a part of it.

    python -m benchmarks.weights_by_rank [--layers 16] [--pipeline] [--json FILE]

Writes a random llama in float32 (with --pipeline a qwen2, of which each rank has layers of its own), leaves so much
memory to the engine that one process refuses the model, and serves it with two ranks of a hosts file that have as much
each. Of each rank's part: `part` is its share of the weights by its shapes, `held` what its process has more than one that
serves the same model with two layers a hundredth as wide (the weights, and whatever else is larger: its KV, up to 16 MB,
and freed memory that the process keeps), `most` the most that it ever had. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from msgspec import structs

import rvllm_local  # noqa: F401  (first: it prepares the process for MLX)
from rvllm_local import SamplingParams
from rvllm_local.clients.process.client import ProcessClient
from rvllm_local.distributed.hosts import read_hosts
from rvllm_local.distributed.invitation import Invitation, start_rank
from rvllm_local.engine.startup.pipeline_stages import plan_stages
from rvllm_local.errors import MemoryBudgetError
from rvllm_local.machine import device_memory
from rvllm_local.models.describe import describe
from rvllm_local.models.families import build_model
from rvllm_local.models.locate import locate
from rvllm_local.models.sharding import divide_outline, parameter_bytes
from rvllm_local.options import EngineOptions
from tests.support.ranks import free_hosts
from tests.support.tiny import save_tokenizer

KV_MEMORY = 16 * 2**20
PROMPT = [5, 6, 7]
GREEDY = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
LARGEST_SHARE = 0.55
# Beside its part of the weights a rank's plan has KV, scratch and the process itself.
BESIDE = 500 * 10**6


def save_model(folder: Path, family: str, layers: int, width: int) -> int:
    """Write a model with random weights. Returns their bytes."""
    heads = 8 if family == "llama" else max(2, width // 128)
    config = {
        "model_type": family,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "vocab_size": 384,
        "max_position_embeddings": 512,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "eos_token_id": 0,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = build_model(config)
    weights = {}
    for name, value in tree_flatten(model.parameters()):
        scale = 1.0 if value.ndim == 1 else 1.6 / value.shape[-1] ** 0.5
        weights[name] = scale * mx.random.normal(value.shape)
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    save_tokenizer(folder)
    return sum(value.nbytes for value in weights.values())


def planned_shares(folder: Path, *, pipeline: bool) -> list[float]:
    """Each rank's share of the weights, by the shapes of its part."""
    model = describe(locate(str(folder)))
    whole = parameter_bytes(model.module)
    if pipeline:
        stages = plan_stages(model, EngineOptions(ranks=2, pipeline=True))
        return [parameter_bytes(stage.module) / whole for stage in stages]
    divide_outline(model.module, model.config, 2)
    return 2 * [parameter_bytes(model.module) / whole]


def memory_of(pid: int) -> dict[str, int]:
    """Resident bytes of a process: now, and the most so far."""
    figures = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("RssAnon", "VmHWM"):
            figures[name] = int(rest.split()[0]) * 1024
    return figures


def served(
    model: Path, hosts_file: Path, options: EngineOptions
) -> tuple[list[dict[str, int]], list[int]]:
    """The memory of both ranks while they serve, and the tokens of a prompt."""
    hosts = read_hosts(hosts_file)
    host, port = hosts.addresses[0]
    secret = Path(hosts.secret).read_bytes()
    invitation = Invitation(host, port - 1, 1, 2, secret, str(model), os.getpid(), None)
    other = start_rank(invitation)
    client = ProcessClient(str(model), options)
    try:
        client.wait_ready(300)
        tokens: list[int] = []
        for event in client.submit(PROMPT, GREEDY):
            tokens.extend(event.token_ids)
        leader = client.health().pid
        assert leader is not None
        return [memory_of(leader), memory_of(other.pid)], tokens
    finally:
        client.close()
        other.wait(60)


def write_hosts(folder: Path) -> Path:
    """A host file of two addresses of this machine, and its secret beside it."""
    hosts_file = folder / "hosts.json"
    first, second = free_hosts(2)
    entries = [
        {"ips": [first]},
        {"ips": [second.replace("127.0.0.1", "127.0.0.2")]},
    ]
    hosts_file.write_text(json.dumps(entries))
    secret_file = hosts_file.with_suffix(".secret")
    secret_file.touch(0o600)
    secret_file.write_text(secrets.token_hex(32))
    return hosts_file


def refusal_of(folder: Path, options: EngineOptions) -> str:
    """Why one process does not load the model; nothing if it does."""
    try:
        ProcessClient(str(folder), options).close()
    except MemoryBudgetError as error:
        return str(error)
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--pipeline", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "large"
        family = "qwen2" if arguments.pipeline else "llama"
        weights = save_model(folder, family, arguments.layers, 1024)
        small = Path(root) / "small"
        save_model(small, family, 2, 16)
        hosts_file = write_hosts(Path(root))
        reserve = device_memory() - (weights // 2 + BESIDE)
        options = EngineOptions(
            kv_memory=KV_MEMORY, max_rows=2, prefill_chunk=64, system_reserve=reserve
        )
        refusal = refusal_of(folder, options)
        parts = planned_shares(folder, pipeline=arguments.pipeline)
        together = structs.replace(
            options,
            ranks=2,
            pipeline=arguments.pipeline,
            hosts=read_hosts(hosts_file),
        )
        empty, _ = served(small, hosts_file, together)
        full, tokens = served(folder, hosts_file, together)
    shares = []
    for rank in range(2):
        held = full[rank]["RssAnon"] - empty[rank]["RssAnon"]
        peak = full[rank]["VmHWM"] - empty[rank]["VmHWM"]
        shares.append(
            {"part": parts[rank], "held": held / weights, "most": peak / weights}
        )
    result = {
        "weights": weights,
        "one process": refusal,
        "ranks": shares,
        "tokens": tokens,
    }
    print(json.dumps(result, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    is_right = bool(refusal) and len(tokens) == GREEDY.max_tokens
    for share in shares:
        is_right = is_right and share["held"] <= LARGEST_SHARE
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
