"""The catalogue's layers are those of the models that it names, as far as sizes tell."""

from __future__ import annotations

import pytest
from mlx.utils import tree_flatten

from rvllm_local.engine.startup.planning import plan_model
from rvllm_local.models.catalogue import Catalogue
from rvllm_local.models.describe import outlined
from rvllm_local.models.families import build_model
from rvllm_local.models.shapes import catalogue_config
from rvllm_local.options import EngineOptions

ENTRIES = Catalogue.load().entries
# Its maker has not stated the layers, or not where we read them.
UNKNOWN = {"qwen3.8-27b"}
MOST_EYES = 0.5e9  # parameters of an image encoder, which has no part in an outline
SHAPED = [name for name, entry in ENTRIES.items() if entry.repo and name not in UNKNOWN]


def stated_parameters(text: str) -> tuple[float, float]:
    """The number, and how far rounding may have taken it."""
    scale = {"M": 1e6, "B": 1e9}[text[-1]]
    digits = text[:-1]
    decimals = len(digits.partition(".")[2])
    return float(digits) * scale, 10**-decimals * scale


@pytest.mark.parametrize("name", SHAPED)
def test_an_outline_has_the_stated_number_of_parameters(name: str) -> None:
    entry = ENTRIES[name]
    config = catalogue_config(entry)
    assert config is not None
    count = 0
    for path, parameter in tree_flatten(build_model(config).parameters()):
        if "gemma3" not in entry.architecture or "lm_head" not in path:
            count += parameter.size  # Gemma's head is its embedding
    stated, unit = stated_parameters(entry.parameters)
    allowed = max(unit, 0.06 * stated)
    eyes = MOST_EYES if entry.images else 0
    assert stated - eyes - allowed <= count <= stated + allowed


@pytest.mark.parametrize("name", ["qwen3-8b", "mlx-community/gpt-oss-20b-MXFP4-Q8"])
def test_a_plan_needs_no_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: object, **__: object) -> int:
        raise AssertionError("it asked the hub")

    monkeypatch.setattr("rvllm_local.models.describe.fetch_configuration", fetch)
    said: list[str] = []
    with outlined(name, said.append) as described:
        plan = plan_model(described, EngineOptions(), strict=False)
    assert "catalogue" in said[0]
    assert plan.weights > 0
    assert plan.bytes_per_token > 0


def test_keys_and_values_of_a_token_are_as_the_model_has_them() -> None:
    """36 layers of 8 heads of 128 for keys and as many for values, in float32 here."""
    with outlined("qwen3-8b", lambda _: None) as described:
        plan = plan_model(described, EngineOptions(), strict=False)
    assert plan.bytes_per_token == 36 * 2 * 8 * 128 * 4
    assert plan.context == 40960
