"""Asks transformers for the logits of tiny models, and stores them for the tests.

    python -m scripts.reference_logits [NAME ...]

Run it where transformers and torch are installed; rvllm_local need not be. A reference
holds the configuration as transformers saves it, the names and shapes of the published
tensors, and a few logits. The weights follow from the names (`named_weights`).
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from scripts.reference_mixed import MIXED
from scripts.reference_models import BASE, MODELS
from scripts.reference_nested import NESTED
from scripts.reference_recent import RECENT
from tests.support.named_weights import named_weights

FOLDER = Path(__file__).parents[1] / "tests" / "models" / "references"
TOKENS = [(7 * place * place + 3 * place + 5) % 125 + 3 for place in range(48)]
POSITIONS = (15, 31, 47)
KEPT = 12  # logits a position


def reference(name: str) -> dict[str, Any]:
    """One model's configuration, tensors and logits."""
    model_type, options = {**MODELS, **MIXED, **NESTED, **RECENT}[name]
    if "text_config" not in options:
        options = {**BASE, **options}
    config = CONFIG_MAPPING[model_type](**options)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = _class_of(model_type).from_config(config)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        path = Path(folder) / "model.safetensors"
        tensors = {key: _row(value) for key, value in load_file(path).items()}
        save_file(named_weights(tensors), path, metadata={"format": "pt"})
        model = (
            _class_of(model_type)
            .from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
            .eval()
        )
        text = (Path(folder) / "config.json").read_text(encoding="utf-8")
    with torch.no_grad():
        logits = model(torch.tensor([TOKENS])).logits[0].double().numpy()
    kept = {}
    for position in POSITIONS:
        kept[str(position)] = [float(f"{x:.6g}") for x in logits[position, :KEPT]]
    return {
        "transformers": transformers.__version__,
        "config": json.loads(text),
        "tensors": tensors,
        "tokens": TOKENS,
        "logits": kept,
    }


def _class_of(model_type: str) -> Any:
    """The class for text, or the one for text and pictures where there is no other."""
    if model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def _row(value: np.ndarray[Any, Any]) -> list[Any]:
    """A tensor's shape, and what its values are near if it is a vector."""
    if value.ndim >= 2:
        return [list(value.shape), None]
    if value.size and (value == value.flat[0]).all():
        return [list(value.shape), float(value.flat[0])]
    return [list(value.shape), [float(f"{x:.6g}") for x in value.reshape(-1)]]


def main(names: list[str]) -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in names or [*MODELS, *MIXED, *NESTED, *RECENT]:
        text = json.dumps(reference(name), separators=(",", ":"), sort_keys=True)
        (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        print(name, len(text))


if __name__ == "__main__":
    main(sys.argv[1:])
