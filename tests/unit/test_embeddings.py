"""`LLM` with a model that is pooled: vectors, ranks, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rvllm_local import LLM, SamplingParams
from rvllm_local.errors import ContextOverflowError, ParameterError
from tests.support.pooled import TEXTS, save_embedder, save_reranker
from tests.support.tiny import save_tiny


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with LLM(save_embedder(tmp_path_factory.mktemp("embedder"))) as llm:
        yield llm


def test_a_text_has_one_vector_whatever_is_read_beside_it(embedder: LLM) -> None:
    together = embedder.embed(TEXTS)
    assert together.shape == (4, 32)
    assert together.dtype == np.float32
    for text, vector in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(embedder.embed(text)[0], vector, atol=1e-5)
    assert np.abs(together[0] - together[3]).max() > 1e-3, "order counts"


def test_many_texts_of_many_lengths_keep_their_places(embedder: LLM) -> None:
    texts = [" ".join(["w7"] * (1 + number % 40)) for number in range(300)]
    vectors = embedder.embed(texts)
    for number in (0, 1, 39, 40, 299):
        expected = embedder.embed(texts[number])[0]
        np.testing.assert_allclose(vectors[number], expected, atol=1e-5)


def test_fewer_dimensions_are_the_first_ones_at_length_one(embedder: LLM) -> None:
    whole = embedder.embed("w1 w2")[0]
    shorter = embedder.embed("w1 w2", dimensions=8)[0]
    expected = whole[:8] / np.linalg.norm(whole[:8])
    np.testing.assert_allclose(shorter, expected, atol=1e-5)


def test_the_models_own_prompt_goes_before_a_query(embedder: LLM) -> None:
    asked = embedder.embed("w1 w2", input_type="query")
    np.testing.assert_allclose(asked, embedder.embed("w100 w1 w2"), atol=1e-5)
    plain = embedder.embed("w1 w2", input_type="document")
    np.testing.assert_allclose(plain, embedder.embed("w1 w2"), atol=1e-5)


def test_what_cannot_be_is_refused_by_name(embedder: LLM) -> None:
    with pytest.raises(ParameterError, match=r"33.*from 1 to"):
        embedder.embed("w1", dimensions=33)
    with pytest.raises(ParameterError, match=r"'poem'.*query"):
        embedder.embed("w1", input_type="poem")
    with pytest.raises(ParameterError, match="0 entries"):
        embedder.embed([])
    with pytest.raises(ParameterError, match="writes no text"):
        embedder.generate("w1", SamplingParams(max_tokens=2))
    with pytest.raises(ParameterError, match="reranking model"):
        embedder.rerank("w1", ["w2"])


def test_a_long_text_is_refused_or_cut(embedder: LLM) -> None:
    long = " ".join(["w9"] * 100)
    with pytest.raises(ContextOverflowError, match=r"102 tokens.*64"):
        embedder.embed(long)
    cut = embedder.embed(long, truncate=True)
    np.testing.assert_allclose(cut, embedder.embed(" ".join(["w9"] * 62)), atol=1e-5)


def test_documents_come_best_first(tmp_path: Path) -> None:
    with LLM(save_reranker(tmp_path / "model")) as llm:
        documents = [f"w{number} w{number + 3}" for number in range(8)]
        ranked = llm.rerank("w1 w2", documents)
        scores = [score for _, score in ranked]
        assert sorted(place for place, _ in ranked) == list(range(8))
        assert scores == sorted(scores, reverse=True)
        assert all(0 < score < 1 for score in scores)
        assert llm.rerank("w1 w2", documents, top_n=3) == ranked[:3]
        alone = dict(llm.rerank("w1 w2", [documents[5]]))[0]
        assert alone == pytest.approx(dict(ranked)[5], abs=1e-5)
        with pytest.raises(ParameterError, match="embedding model"):
            llm.embed("w1")


def test_a_chat_model_makes_no_vectors(tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "llama")
    with (
        LLM(model, kv_memory="4MB") as llm,
        pytest.raises(ParameterError, match=r"writes text.*embedding model"),
    ):
        llm.embed("hello")
