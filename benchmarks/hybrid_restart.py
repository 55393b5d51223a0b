"""The time to the first token of an agent's prefix on a hybrid: cold, and after a restart over the disk cache.

    python -m benchmarks.hybrid_restart [--shape tiny|0.8b] [--tokens 4000] [--rounds 3] [--json FILE]

The weights are random. The 0.8B shape is Qwen3.5's: 24 layers, every fourth with attention.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import bootstrap

bootstrap.prepare()

from rvllm_local import host

host.prepare()

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from msgspec.structs import replace

from rvllm_local.clients.contract import make_requests
from rvllm_local.engine.core import EngineCore
from rvllm_local.engine.startup.build import build_core
from rvllm_local.models.families import build_model
from rvllm_local.models.loader import LoadedModel
from rvllm_local.options import EngineOptions
from rvllm_local.types import SamplingParams, StreamEvent
from tests.support.matrix import Bytes
from tests.support.zoo import zoo_config

_SHAPE_08B: dict[str, Any] = {
    "model_type": "qwen3_5_text",
    "hidden_size": 1024,
    "intermediate_size": 3584,
    "num_hidden_layers": 24,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "linear_num_value_heads": 16,
    "linear_num_key_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 4,
    "num_experts": 0,
    "vocab_size": 32768,  # of 248,320: the head is not what is measured
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 262144,
    "tie_word_embeddings": True,
}
_GREEDY = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)


def main() -> int:
    """Measure, print, and exit with 1 if an answer differs or the restart is too slow."""
    arguments = _arguments()
    config = _config(arguments.shape)
    loaded = _loaded(config)
    options = EngineOptions(
        kv_memory=400_000_000,
        max_rows=2,
        prefill_chunk=512,
        cache="disk",
        self_check=False,
    )
    random = np.random.default_rng(0)
    vocab = loaded.vocab_size
    prompt = random.integers(0, vocab, arguments.tokens).tolist()
    cold, warm, sizes = [], [], []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            here = replace(options, cache_dir=folder)
            first = _ask(build_core(loaded, Bytes(), here), prompt)
            sizes.append(_bytes_in(Path(folder)))
            again = _ask(build_core(loaded, Bytes(), here), prompt)
        if again.tokens != first.tokens:
            print(f"the answers differ: {first.tokens} and {again.tokens}")
            return 1
        cold.append(first.ttft_s)
        warm.append(again.ttft_s)
    result = {
        "shape": arguments.shape,
        "prompt_tokens": arguments.tokens,
        "cached_tokens": again.cached,
        "cold_ttft_s": statistics.median(cold),
        "restarted_ttft_s": statistics.median(warm),
        "share": statistics.median(warm) / statistics.median(cold),
        "bytes_on_disk": statistics.median(sizes),
    }
    print(json.dumps(result, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0 if result["share"] <= 0.1 else 1


class _Answer:
    """A sink that notes when the first token came."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.cached = 0
        self.ttft_s = 0.0
        self._began = time.monotonic()

    def __call__(self, event: StreamEvent) -> None:
        if not self.tokens:
            self.ttft_s = time.monotonic() - self._began
        self.tokens.extend(event.token_ids)
        self.cached = event.cached_tokens


def _ask(core: EngineCore, prompt: list[int]) -> _Answer:
    """One answer of a new engine, which is closed."""
    answer = _Answer()
    core.add(make_requests(tuple(prompt), _GREEDY)[0], answer)
    while core.has_work:
        core.step()
    while core.has_idle_work:
        core.idle()
    core.close("done")
    return answer


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.kv"))


def _config(shape: str) -> dict[str, Any]:
    if shape == "tiny":
        return {**zoo_config("lfm2"), "max_position_embeddings": 8192}
    return {
        "model_type": "qwen3_5",
        "text_config": _SHAPE_08B,
        "vocab_size": _SHAPE_08B["vocab_size"],
        "max_position_embeddings": 8192,
    }


def _loaded(config: dict[str, Any]) -> LoadedModel:
    """A float32 model with small random weights."""
    model = build_model(config)
    random = np.random.default_rng(1)
    weights = []
    for name, value in tree_flatten(model.parameters()):
        if value.ndim >= 2:
            scale = 1.6 / np.sqrt(value.shape[-1])
            drawn = scale * random.standard_normal(value.shape)
            weights.append((name, mx.array(drawn.astype(np.float32))))
    model.update(tree_unflatten(weights))
    model.eval()
    mx.eval(model.parameters())
    vocab = int(config["vocab_size"])
    name = str(config["model_type"])
    return LoadedModel(model, config, name, name, 8192, vocab, (), 0, f"random {name}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=("tiny", "0.8b"), default="tiny")
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
