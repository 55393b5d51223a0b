"""`rvllm show` tells what of a model is used, and what is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from rvllm_local.commands.model_facts import facts
from rvllm_local.models.ignored import ignored_parts
from rvllm_local.models.loader import load_model
from rvllm_local.models.locate import locate
from tests.support.tiny import save_tiny


def test_show_tells_ends_sampling_template_and_what_was_ignored(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_x.X"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_x.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    index = {"weight_map": {"nobody.has.it": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    settings = {"eos_token_id": [2, 0], "temperature": 0.6}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    shown = facts(str(folder))
    assert [row.split(" ")[0] for row in shown["ends"]][:2] == ["2", "0"]
    assert shown["sampling"] == {"temperature": 0.6}
    assert shown["sampling_source"] == "generation_config.json"
    assert shown["template_source"].endswith((".json", ".jinja"))
    ignored = "\n".join(shown["ignored"])
    for name in ("auto_map", "modeling_x.py", "pytorch_model.bin", "index.json"):
        assert name in ignored


def test_recommendations_that_are_no_json_do_not_refuse_a_model(tmp_path: Path) -> None:
    """As mlx-lm's pull request 708 found one published: with a comma too many."""
    folder = save_tiny("llama", tmp_path / "tiny")
    path = folder / "generation_config.json"
    path.write_text('{"eos_token_id": 2, "temperature": 0.15,}')
    load_model(locate(str(folder)))
    shown = facts(str(folder))
    assert "generation_config.json: it is no JSON" in shown["ignored"]
    assert "sampling" not in shown or shown["sampling"] == {}


def test_weights_of_other_parts_are_counted(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "tiny")
    path = folder / "model.safetensors"
    weights = dict(mx.load(str(path)))
    weights["mtp.fc.weight"] = mx.zeros((2, 2))
    weights["vision_tower.norm.weight"] = mx.zeros(2)
    mx.eval(weights)
    mx.save_safetensors(str(path), weights)
    files = locate(str(folder))
    (told,) = ignored_parts(files, {"model_type": "llama"})
    assert told.startswith("2 weights such as mtp.fc.weight")
    path.write_bytes(b"cut")
    assert ignored_parts(files, {"model_type": "llama"}) == []


def test_the_default_model_ignores_nothing() -> None:
    shown = facts("smollm2-135m")
    assert shown["sampling"] == {"temperature": 0.2, "top_p": 0.9}
    assert "2 <|im_end|>" in shown["ends"]
    assert "ignored" not in shown


def test_a_window_that_a_definition_does_not_know_is_told(tmp_path: Path) -> None:
    files = locate(str(save_tiny("llama", tmp_path / "tiny")))
    window = {"model_type": "gemma2", "sliding_window": 4096}
    assert "4096" in ignored_parts(files, window)[0]
    assert ignored_parts(files, {**window, "use_sliding_window": False}) == []
    assert ignored_parts(files, {**window, "layer_types": ["full_attention"]}) == []
    assert ignored_parts(files, {**window, "model_type": "gemma3_text"}) == []


@pytest.mark.parametrize(
    ("quantization", "told"),
    [
        (
            {"quant_method": "fp8", "activation_scheme": "static"},
            "activation_scheme 's",
        ),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "quant_algo NVFP4: act"),
        ({"quant_method": "modelopt", "quant_algo": "FP8_PB_WO"}, None),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"input_activations": {"num_bits": 8}}},
            },
            "input_activations of 8 bits: activations are not rounded",
        ),
        ({"quant_method": "compressed-tensors", "config_groups": {"0": {}}}, None),
        ({"quant_method": "gptq", "bits": 4}, None),
    ],
)
def test_activations_that_a_writer_has_rounded_are_told(
    quantization: dict[str, Any], told: str | None, tmp_path: Path
) -> None:
    files = locate(str(save_tiny("llama", tmp_path / "tiny")))
    config = {"model_type": "llama", "quantization_config": quantization}
    parts = ignored_parts(files, config)
    assert len(parts) == (told is not None)
    assert (told or "") in "".join(parts)
