"""Adapters are held against their model before its weights are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from rvllm_local.commands.serve import adapter_of
from rvllm_local.engine.startup.planning import plan_model
from rvllm_local.errors import (
    ConfigError,
    MemoryBudgetError,
    ModelNotFoundError,
    RvllmError,
)
from rvllm_local.models.adapted import adapted_bytes
from rvllm_local.models.adapter_files import read_adapter, read_adapters
from rvllm_local.models.describe import ModelDescription, describe
from rvllm_local.models.locate import locate
from rvllm_local.options import EngineOptions
from tests.support.lora import save_adapter, save_peft
from tests.support.tiny import save_tiny

KEYS = ("self_attn.q_proj", "mlp.down_proj")
LAYER = "model.layers.2.self_attn.q_proj"
Weights = dict[str, mx.array]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = save_tiny("llama", tmp_path_factory.mktemp("model") / "tiny")
    return path


@pytest.fixture(scope="module")
def description(model: Path) -> ModelDescription:
    return describe(locate(str(model)))


def edit_weights(folder: Path, change: Callable[[Weights], Weights]) -> None:
    path = next(folder.glob("*.safetensors"))
    mx.save_safetensors(str(path), change(dict(mx.load(str(path)))))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


BAD_WEIGHTS: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "nothing": (lambda w: {}, "empty"),
    "half a layer": (
        lambda w: {k: v for k, v in w.items() if k != f"{LAYER}.lora_b"},
        "only lora_a",
    ),
    "a foreign layer": (
        lambda w: {f"other.{k}": v for k, v in w.items()},
        "is for another one",
    ),
    "a norm": (
        lambda w: {f"model.norm.{k[-6:]}": v for k, v in w.items()},
        "no linear layer",
    ),
    "a whole matrix": (
        lambda w: {**w, f"{LAYER}.weight": mx.zeros((64, 64))},
        "not one of a LoRA adapter",
    ),
    "dora": (
        lambda w: {**w, f"{LAYER}.m": mx.zeros((64,))},
        "not one of a LoRA adapter",
    ),
    "another width": (
        lambda w: {**w, f"{LAYER}.lora_a": mx.zeros((32, 4))},
        r"\[32, 4\]",
    ),
    "another rank": (
        lambda w: {**w, f"{LAYER}.lora_a": mx.zeros((64, 5))},
        r"\[64, 5\]",
    ),
    "no rank": (lambda w: {**w, f"{LAYER}.lora_a": mx.zeros((64,))}, r"\[64\]"),
    "three axes": (
        lambda w: {**w, f"{LAYER}.lora_a": mx.zeros((1, 64, 4))},
        r"\[1, 64, 4\]",
    ),
    "a huge rank": (
        lambda w: {
            **w,
            f"{LAYER}.lora_a": mx.zeros((64, 2000)),
            f"{LAYER}.lora_b": mx.zeros((2000, 64)),
        },
        "rank up to 1024",
    ),
    "integers": (
        lambda w: {**w, f"{LAYER}.lora_a": mx.zeros((64, 4), dtype=mx.int32)},
        "type I32",
    ),
    "NaN": (
        lambda w: {**w, f"{LAYER}.lora_a": mx.full((64, 4), float("nan"))},
        "not finite",
    ),
    "infinity": (
        lambda w: {**w, f"{LAYER}.lora_b": mx.full((4, 64), float("inf"))},
        "not finite",
    ),
}


@pytest.mark.parametrize("what", BAD_WEIGHTS)
def test_bad_weights_are_refused(
    model: Path, description: ModelDescription, tmp_path: Path, what: str
) -> None:
    folder = save_adapter(tmp_path / "adapter", model, KEYS)
    change, message = BAD_WEIGHTS[what]
    edit_weights(folder, change)
    with pytest.raises(RvllmError, match=message):
        read_adapter("mine", folder, description.module)


BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"fine_tune_type": "dora"}, "'dora' is not supported"),
    "full": ({"fine_tune_type": "full"}, "'full' is not supported"),
    "no parameters": ({"lora_parameters": None}, "lora_parameters.scale"),
    "alpha": ({"lora_parameters": {"alpha": 16}}, "must be a number, not None"),
    "text": ({"lora_parameters": {"scale": "big"}}, "must be a number, not 'big'"),
    "NaN": ({"lora_parameters": {"scale": float("nan")}}, "must be a number, not nan"),
    "true": ({"lora_parameters": {"scale": True}}, "must be a number, not True"),
    "huge": ({"lora_parameters": {"scale": 1e30}}, "must be a number"),
    "another method": ({"peft_type": "IA3"}, "'IA3' is not supported"),
}


@pytest.mark.parametrize("what", BAD_CONFIGS)
def test_bad_configurations_are_refused(
    model: Path, description: ModelDescription, tmp_path: Path, what: str
) -> None:
    folder = save_adapter(tmp_path / "adapter", model, KEYS)
    changes, message = BAD_CONFIGS[what]
    edit_config(folder, **changes)
    with pytest.raises(RvllmError, match=message):
        read_adapter("mine", folder, description.module)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 0}, "r must be an integer"),
        ({"r": "4"}, "r must be an integer"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"use_dora": True}, "use_dora"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "biases"),
    ],
)
def test_what_peft_can_and_this_cannot_is_refused(
    model: Path,
    description: ModelDescription,
    tmp_path: Path,
    changes: dict[str, Any],
    message: str,
) -> None:
    folder = save_peft(tmp_path / "adapter", model, KEYS)
    edit_config(folder, **changes)
    with pytest.raises(RvllmError, match=message):
        read_adapter("mine", folder, description.module)


def test_damaged_and_missing_files_are_refused(
    model: Path, description: ModelDescription, tmp_path: Path
) -> None:
    def refuses(folder: Path, message: str) -> None:
        with pytest.raises(RvllmError, match=message):
            read_adapter("mine", folder, description.module)

    refuses(tmp_path / "nowhere", "is no folder")
    (tmp_path / "empty").mkdir()
    refuses(tmp_path / "empty", "adapter_config.json does not exist")
    for name, content in {
        "text": b"{",
        "list": b"[1]",
        "bytes": b"\xff\xfe",
        "deep": b"[" * 100_000,
    }.items():
        folder = save_adapter(tmp_path / name, model, KEYS)
        (folder / "adapter_config.json").write_bytes(content)
        refuses(folder, "adapter_config.json")
    folder = save_adapter(tmp_path / "cut", model, KEYS)
    weights = folder / "adapters.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    refuses(folder, "not a sound safetensors file")
    weights.unlink()
    refuses(folder, "missing")


def test_their_bytes_are_in_the_plan(
    model: Path, description: ModelDescription, tmp_path: Path
) -> None:
    folders = [
        ("a", save_adapter(tmp_path / "a", model, KEYS)),
        ("b", save_adapter(tmp_path / "b", model, KEYS, rank=16)),
    ]
    named = tuple((name, str(folder)) for name, folder in folders)
    plain = EngineOptions(kv_memory=4_000_000)
    adapted = EngineOptions(kv_memory=4_000_000, adapters=named)
    taken = adapted_bytes(read_adapters(named, description.module))
    assert taken == 2 * 3 * 16 * 4 * (
        (64 + 64) + (96 + 64)
    )  # layers, adapters and none, rank, bytes, widths
    assert (
        plan_model(description, adapted).weights
        - plan_model(description, plain).weights
        == taken
    )
    with pytest.raises(MemoryBudgetError):
        plan_model(
            description,
            EngineOptions(kv_memory=4_000_000, adapters=named, system_reserve=2**50),
        )


def test_the_flag_wants_a_name_and_a_folder(tmp_path: Path) -> None:
    assert adapter_of(f"mine={tmp_path}") == ("mine", str(tmp_path))
    for text in (
        "",
        "mine",
        "=x",
        f"={tmp_path}",
        "mine=",
        "mine=/nowhere/at/all",
        f"a b={tmp_path}",
    ):
        with pytest.raises(ConfigError, match="NAME=DIR"):
            adapter_of(text)


def test_a_missing_folder_is_named(description: ModelDescription) -> None:
    with pytest.raises(ModelNotFoundError, match="/nowhere"):
        read_adapter("mine", Path("/nowhere"), description.module)
