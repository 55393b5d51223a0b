"""Rerankers that are asked about a pair, and answer with one of two words."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from rvllm_local.errors import ModelFileError, UnsupportedModelError
from rvllm_local.llm import LLM
from rvllm_local.models.encoders.decoders import CausalEncoder
from rvllm_local.models.encoders.load import load_pooled
from rvllm_local.models.encoders.setup import pooled_setup
from rvllm_local.models.locate import locate
from tests.models.encoders.test_reference_vectors import reference_of, run, save
from tests.support.pooled import save_tokenizer

ROWS = [[3, 5, 7, 9], [4, 6], [8, 2, 8, 2, 8, 2]]
ANSWERS = (11, 12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder whose name says that it ranks, with a tokenizer that knows both words."""
    made = tmp_path_factory.mktemp("models") / "Tiny-Reranker"
    reference = reference_of("qwen3")
    config = {**reference["config"], "max_position_embeddings": 256}
    save(made, {**reference, "config": config})
    save_tokenizer(made, ("no", "yes"))
    return made


def test_the_words_logits_are_the_scores(folder: Path) -> None:
    files = locate(str(folder))
    setup = pooled_setup(files)
    assert setup is not None and setup.answers == ("no", "yes")
    model = load_pooled(files, setup, ANSWERS)
    assert isinstance(model.module, CausalEncoder)
    scores = run(model, ROWS, pair=False)
    for row, given in zip(ROWS, scores, strict=True):
        logits = np.array(model.module.decoder(mx.array([row])))[0, -1]
        np.testing.assert_allclose(given, logits[list(ANSWERS)], rtol=1e-4, atol=1e-4)


def test_python_ranks_by_the_probability_of_yes(folder: Path) -> None:
    documents = ["w3 w4", "w9", "w5 " * 300]  # the last is cut, and the question is not
    with LLM(str(folder), context_length=200) as llm:
        pools = llm._client.limits.pools
        assert pools is not None and pools.pair_form is not None
        before, lead, between, behind = pools.pair_form
        ranked = dict(llm.rerank("w1 w2", documents))
        backend = llm.tokenizer.backend
        yes_no = [llm.tokenizer.encode(word)[0] for word in ("no", "yes")]
    files = locate(str(folder))
    setup = pooled_setup(files)
    assert setup is not None
    model = load_pooled(files, setup, yes_no)
    ends = [
        backend.encode(text, add_special_tokens=False).ids for text in (before, behind)
    ]
    for index, document in enumerate(documents):
        text = f"{lead}w1 w2{between}{document}"
        ids = backend.encode(text, add_special_tokens=False).ids
        ids = ids[: 200 - len(ends[0]) - len(ends[1])]
        (logits,) = run(model, [[*ends[0], *ids, *ends[1]]], pair=False)
        expected = 1 / (1 + np.exp(logits[0] - logits[1]))
        assert ranked[index] == pytest.approx(float(expected), abs=1e-3)


def test_a_head_of_its_own_scores(folder: Path, tmp_path: Path) -> None:
    reference = reference_of("qwen3")
    config = reference["config"]
    config = {**config, "architectures": ["Qwen3ForSequenceClassification"]}
    made = save(tmp_path / "m", {**reference, "config": {**config, "num_labels": 1}})
    files = locate(str(made))
    setup = pooled_setup(files)
    assert setup is not None and setup.num_labels == 1
    with pytest.raises(ModelFileError, match=r"score\.weight"):
        load_pooled(files, setup)
    path = made / "model.safetensors"
    weights = mx.load(str(path))
    head = mx.random.normal((1, config["hidden_size"]))
    mx.save_safetensors(str(path), {**weights, "score.weight": head})
    model = load_pooled(files, setup)
    (score,) = run(model, ROWS[:1], pair=False)
    states = np.array(model.module.decoder.model(mx.array(ROWS[:1])))[0, -1]
    np.testing.assert_allclose(score, states @ np.array(head).T, rtol=1e-4, atol=1e-4)


def test_words_of_several_tokens_are_refused(folder: Path, tmp_path: Path) -> None:
    made = save(tmp_path / "a-reranker", reference_of("qwen3"))
    save_tokenizer(made)
    path = made / "tokenizer.json"
    settings = json.loads(path.read_text())
    settings["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"Regex": "."},
        "behavior": "Isolated",
        "invert": False,
    }
    path.write_text(json.dumps(settings))
    with pytest.raises(UnsupportedModelError, match="'no', which is 2 tokens"):
        LLM(str(made))
