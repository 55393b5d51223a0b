"""LoRA adapters with random weights, in mlx-lm's format and PEFT's, and what mlx-lm makes of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn

from rvllm_local.attention.probe import plain_caches
from rvllm_local.models.adapter_files import _linear_sizes
from rvllm_local.models.describe import describe
from rvllm_local.models.loader import load_model
from rvllm_local.models.locate import locate

SCALE = 6.0


def save_adapter(
    folder: Path,
    model: Path,
    keys: Sequence[str],
    *,
    rank: int = 4,
    seed: int = 0,
    layers: int = 2,
) -> Path:
    """An adapter for the last `layers` layers of a model folder, as mlx-lm's training saves it. Returns its folder."""
    weights = {}
    for path, (a, b) in _random(model, keys, rank, seed, layers).items():
        weights |= {f"{path}.lora_a": a, f"{path}.lora_b": b}
    parameters = {"rank": rank, "scale": SCALE, "dropout": 0.0, "keys": list(keys)}
    config = {
        "fine_tune_type": "lora",
        "num_layers": layers,
        "lora_parameters": parameters,
    }
    return _save(folder, "adapters.safetensors", weights, config)


def save_peft(
    folder: Path,
    model: Path,
    keys: Sequence[str],
    *,
    rank: int = 4,
    seed: int = 0,
    layers: int = 2,
) -> Path:
    """The same adapter as PEFT saves it."""
    weights = {}
    for path, (a, b) in _random(model, keys, rank, seed, layers).items():
        name = f"base_model.model.{path}"
        weights |= {
            f"{name}.lora_A.weight": mx.contiguous(a.T),
            f"{name}.lora_B.weight": mx.contiguous(b.T),
        }
    targets = sorted({key.rpartition(".")[2] for key in keys})
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": SCALE * rank,
        "target_modules": targets,
        "bias": "none",
    }
    return _save(folder, "adapter_model.safetensors", weights, config)


def mlx_lm_tokens(
    model: Path, adapter: Path | None, prompt: Sequence[int], count: int
) -> tuple[int, ...]:
    """Greedy tokens of mlx-lm's own definition with its own low-rank layers over the weights as this machine has them."""
    module = load_model(locate(str(model))).module
    if adapter is not None:
        from mlx_lm.tuner.utils import load_adapters

        load_adapters(module, str(adapter))
        module.eval()
    return greedy(module, prompt, count)


def greedy(module: nn.Module, prompt: Sequence[int], count: int) -> tuple[int, ...]:
    """Greedy tokens through mlx-lm's own caches."""
    caches, tokens = plain_caches(module), []
    logits = module(mx.array([list(prompt)]), cache=caches)
    for _ in range(count):
        tokens.append(int(mx.argmax(logits[0, -1]).item()))
        logits = module(mx.array([[tokens[-1]]]), cache=caches)
    return tuple(tokens)


def _random(
    model: Path, keys: Sequence[str], rank: int, seed: int, layers: int
) -> dict[str, tuple[mx.array, mx.array]]:
    sizes = _linear_sizes(describe(locate(str(model))).module)
    total = 1 + max(
        int(path.split(".")[2]) for path in sizes if path.startswith("model.layers.")
    )
    found = {}
    for path in sorted(sizes):
        if (
            path.startswith("model.layers.")
            and path.split(".", 3)[3] in keys
            and int(path.split(".")[2]) >= total - layers
        ):
            inputs, outputs = sizes[path]
            first, second = mx.random.split(mx.random.key(seed + len(found)))
            found[path] = (
                0.2 * mx.random.normal((inputs, rank), key=first),
                0.2 * mx.random.normal((rank, outputs), key=second),
            )
    return found


def _save(
    folder: Path, name: str, weights: Mapping[str, mx.array], config: Mapping[str, Any]
) -> Path:
    folder.mkdir(parents=True)
    mx.save_safetensors(str(folder / name), dict(weights))
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
