"""What users reported of folders to other servers is loaded right, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from rvllm_local.errors import RvllmError
from rvllm_local.models.loader import load_model
from rvllm_local.models.locate import locate
from tests.models.reported_folders import ABSENT, REPORTED, Fields, Reported, pack
from tests.support.tiny import save_tokenizer
from tests.support.zoo import zoo_config, zoo_model

NAMES = [f"{number} {case.source}" for number, case in enumerate(REPORTED)]
TOKENS = mx.array([[5, 6, 7, 9, 11, 300]])


def changed(config: Fields, changes: Fields) -> Fields:
    merged = {**config, **changes}
    return {key: value for key, value in merged.items() if value is not ABSENT}


def model_config(case: Reported) -> dict[str, Any]:
    config = zoo_config(case.arch)
    if "text_config" in config:
        return {**config, "text_config": changed(config["text_config"], case.model)}
    return changed(config, case.model)


def saved(case: Reported, folder: Path) -> mx.array:
    """Write the folder; returns the logits that the model has."""
    config = model_config(case)
    model, _ = zoo_model(case.arch, 1, config)
    if case.quantized is not None:
        pack(model, *case.quantized)
    weights = dict(tree_flatten(model.parameters()))
    if case.weights is not None:
        weights = case.weights(weights)
    config = changed(config, case.config)
    if case.in_text:
        config["text_config"] = changed(config["text_config"], case.in_text)
    (folder / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    save_tokenizer(folder)
    logits: mx.array = model(TOKENS)
    return logits


@pytest.mark.parametrize("case", REPORTED, ids=NAMES)
def test_a_reported_folder_is_loaded(case: Reported, tmp_path: Path) -> None:
    expected = np.array(saved(case, tmp_path))
    if case.refused is not None:
        with pytest.raises(RvllmError, match=case.refused):
            load_model(locate(str(tmp_path)))
        return
    loaded = load_model(locate(str(tmp_path)))
    logits = np.array(loaded.module(TOKENS))
    distance = np.abs(logits - expected).max() / np.abs(expected).max()
    assert distance < 1e-3
