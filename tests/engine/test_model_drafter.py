"""A smaller model drafts: it draws with the same noise, and answers stay as they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from rvllm_local import SamplingParams
from rvllm_local.clients.contract import make_requests
from rvllm_local.engine.core import EngineCore
from rvllm_local.engine.speculation.speculator import Speculator
from rvllm_local.errors import ConfigError, MemoryBudgetError
from tests.support.drafters import FourEach, FreeTokens
from tests.support.scenarios import Answer, Engine
from tests.support.tiny import save_tiny, save_tokenizer
from tests.support.zoo import zoo_model

SAMPLINGS = (
    SamplingParams(max_tokens=24, temperature=0, ignore_eos=True),
    SamplingParams(max_tokens=24, temperature=0.7, seed=3, ignore_eos=True),
    SamplingParams(max_tokens=24, temperature=1.5, top_p=0.9, seed=4, ignore_eos=True),
    SamplingParams(
        max_tokens=24,
        temperature=1.0,
        top_k=20,
        seed=5,
        repetition_penalty=1.3,
        ignore_eos=True,
    ),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("model"), seed=3)


def open_engine(model: Path, draft: object, **options: object) -> Engine:
    settings = {"kv_memory": 400_000, "self_check": False, "max_rows": 32, **options}
    return Engine(model, draft=str(draft), **settings)


def speculator_of(core: EngineCore) -> Speculator:
    speculator = core._parts.speculator
    assert speculator is not None
    speculator.costs = FreeTokens()
    speculator._length = FourEach()  # type: ignore[assignment]
    return speculator


def answers_of(engine: Engine, prompts: Sequence[Sequence[int]]) -> list[Answer]:
    answers = []
    for number, (prompt, params) in enumerate(zip(prompts, SAMPLINGS, strict=True)):
        (request,) = make_requests(tuple(prompt), params, request_id=str(number))
        answer = Answer()
        answers.append(answer)
        engine.core.add(request, answer)
    while engine.core.has_work:
        engine.core.step()
    engine.core.check_integrity()
    return answers


PROMPTS = ([5, 6, 7], [9] * 40, [3, 4] * 50, [8])


def test_a_drafter_that_equals_its_model_is_always_right(model: Path) -> None:
    """At any temperature, with filters and penalties: both draw with the same noise."""
    with open_engine(model, "off") as plain:
        expected = answers_of(plain, PROMPTS)
        num_steps = plain.core.num_steps
    with open_engine(model, model) as engine:
        speculator = speculator_of(engine.core)
        answers = answers_of(engine, PROMPTS)
        drafter = speculator._drafter
        assert drafter._kv.blocks_free == drafter._kv.blocks_total  # type: ignore[attr-defined]
        assert engine.core.num_steps < 0.4 * num_steps
    assert speculator.rejected == 0
    assert speculator.accepted > 50
    for answer, right in zip(answers, expected, strict=True):
        assert answer.tokens == right.tokens


def test_a_drafter_of_another_vocabulary_is_refused(
    model: Path, tmp_path: Path
) -> None:
    other = save_tiny("llama", tmp_path / "other", seed=3)
    path = other / "tokenizer.json"
    stored = json.loads(path.read_text())
    vocab = stored["model"]["vocab"]
    first, second = sorted(vocab, key=vocab.__getitem__)[20:22]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    path.write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match=r"its token 20 is .* same tokenizer"):
        open_engine(model, other)


def test_a_drafter_with_recurrent_layers_is_refused(
    model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "recurrent"
    folder.mkdir()
    module, config = zoo_model("lfm2")
    (folder / "config.json").write_text(json.dumps(config))
    weights = dict(tree_flatten(module.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    save_tokenizer(folder)
    with pytest.raises(ConfigError, match="several rows, or several tokens"):
        open_engine(model, folder)


def test_a_drafter_that_does_not_fit_is_refused_with_the_arithmetic(
    model: Path,
) -> None:
    with pytest.raises(MemoryBudgetError, match=r"drafter .* the budget is"):
        open_engine(model, model, system_reserve=2**60)
