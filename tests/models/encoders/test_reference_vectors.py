"""Tiny pooled models give transformers' own vectors and scores.

`scripts/reference_vectors.py` made the references, with configurations as transformers 5
saves them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from rvllm_local.models.encoders.load import PooledModel, load_pooled
from rvllm_local.models.encoders.setup import pooled_setup
from rvllm_local.models.locate import locate
from tests.support.named_weights import named_weights

FOLDER = Path(__file__).parent / "references"
VECTORS = ("bert", "roberta", "xlm-roberta", "modernbert", "nomic_bert")
SCORES = ("bert-scores", "xlm-roberta-scores", "modernbert-scores")
MODES = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "last": "pooling_mode_lasttoken",
}


def reference_of(name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    return read


def save(folder: Path, reference: dict[str, Any], pooling: str | None = None) -> Path:
    """A model's folder, as sentence-transformers writes it if a pooling is given."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(reference["config"]))
    weights = named_weights(reference["tensors"])
    arrays = {name: mx.array(value) for name, value in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), arrays)
    if pooling is not None:
        kinds = ["Transformer", "Pooling"]
        rows = []
        for number, kind in enumerate(kinds):
            path = "" if number == 0 else f"{number}_{kind}"
            rows.append({"idx": number, "path": path, "type": f"x.models.{kind}"})
        (folder / "modules.json").write_text(json.dumps(rows))
        (folder / "1_Pooling").mkdir(exist_ok=True)
        settings = {MODES[pooling]: True}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    return folder


def load(folder: Path) -> PooledModel:
    files = locate(str(folder))
    setup = pooled_setup(files)
    assert setup is not None
    return load_pooled(files, setup)


def run(model: PooledModel, rows: list[list[int]], pair: bool) -> np.ndarray:
    width = max(map(len, rows))
    tokens = np.zeros((len(rows), width), dtype=np.int32)
    kinds = np.zeros_like(tokens)
    for number, ids in enumerate(rows):
        tokens[number, : len(ids)] = ids
        if pair:
            kinds[number, len(ids) // 2 : len(ids)] = 1
    lengths = mx.array([len(ids) for ids in rows])
    return np.array(model(mx.array(tokens), lengths, mx.array(kinds)))


@pytest.mark.parametrize("pooling", MODES)
@pytest.mark.parametrize("name", [*VECTORS, "qwen3", "gemma3_text"])
def test_vectors_are_transformers_own(name: str, pooling: str, tmp_path: Path) -> None:
    reference = reference_of(name)
    model = load(save(tmp_path / name, reference, pooling))
    # transformers was given no second texts for models that know none.
    vectors = run(model, reference["rows"], pair=name in ("bert", "nomic_bert"))
    for vector, expected in zip(vectors, reference[pooling], strict=True):
        cosine = vector @ expected / np.linalg.norm(vector) / np.linalg.norm(expected)
        assert cosine > 0.99999
    np.testing.assert_allclose(vectors, reference[pooling], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", SCORES)
def test_scores_are_transformers_own(name: str, tmp_path: Path) -> None:
    reference = reference_of(name)
    model = load(save(tmp_path / name, reference))
    assert model.setup.kind == "score"
    scores = run(model, reference["rows"], pair=name == "bert-scores")
    np.testing.assert_allclose(scores, reference["scores"], rtol=1e-3, atol=1e-3)


def test_company_and_padding_change_nothing(tmp_path: Path) -> None:
    reference = reference_of("modernbert")
    model = load(save(tmp_path / "model", reference, "mean"))
    rows = reference["rows"]
    together = run(model, rows, pair=False)
    for number, row in enumerate(rows):
        alone = run(model, [row], pair=False)
        np.testing.assert_allclose(alone[0], together[number], atol=1e-5)
