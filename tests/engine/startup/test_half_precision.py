"""bfloat16 weights become float16 where that is quicker and holds their numbers."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from rvllm_local import machine
from rvllm_local.engine.startup import half_precision
from rvllm_local.engine.startup.half_precision import change_to_float16, in_float16
from rvllm_local.errors import UnsupportedModelError
from rvllm_local.models.loader import LoadedModel, load_model
from rvllm_local.models.locate import locate
from rvllm_local.options import EngineOptions
from tests.support.tiny import save_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("model") / "tiny", seed=3)


def in_bfloat16(folder: Path) -> LoadedModel:
    """As a GPU would load it: a CPU widens all weights."""
    loaded = load_model(locate(str(folder)))
    loaded.module.set_dtype(mx.bfloat16)
    return loaded


@pytest.fixture
def old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_precision, "is_on_cpu", lambda: False)
    monkeypatch.setattr(half_precision, "prefers_float16", lambda: True)


def dtypes(loaded: LoadedModel) -> set[mx.Dtype]:
    return {value.dtype for _, value in tree_flatten(loaded.module.parameters())}


def never() -> LoadedModel:
    raise AssertionError("nothing was wrong")


@pytest.mark.usefixtures("old_gpu")
def test_weights_become_float16_on_an_old_gpu(folder: Path) -> None:
    stored = in_bfloat16(folder)
    loaded = in_float16(stored, EngineOptions(), never)
    assert dtypes(loaded) == {mx.float16}
    # Blocks on disk hold the other type: they are not taken for these.
    assert loaded.fingerprint != stored.fingerprint


@pytest.mark.usefixtures("old_gpu")
@pytest.mark.parametrize("options", [{"dtype": "stored"}, {"self_check": False}])
def test_weights_stay_if_asked_or_if_nobody_watches(
    folder: Path, options: dict[str, object]
) -> None:
    loaded = in_float16(in_bfloat16(folder), EngineOptions(**options), never)  # type: ignore[arg-type]
    assert dtypes(loaded) == {mx.bfloat16}


def test_weights_stay_on_a_gpu_that_has_bfloat16(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(half_precision, "is_on_cpu", lambda: False)
    loaded = in_float16(in_bfloat16(folder), EngineOptions(), never)
    assert dtypes(loaded) == {mx.bfloat16}


@pytest.mark.usefixtures("old_gpu")
def test_large_activations_keep_a_model_in_bfloat16(folder: Path) -> None:
    """Each weight fits, and what is computed from them comes near the end."""
    loaded = in_bfloat16(folder)
    mlp = loaded.module.model.layers[0].mlp
    mlp.down_proj.weight = mlp.down_proj.weight * 1e7
    again = in_bfloat16(folder)
    assert in_float16(loaded, EngineOptions(), lambda: again) is again
    with pytest.raises(UnsupportedModelError, match="its activations reach"):
        in_float16(loaded, EngineOptions(dtype="float16"), never)
    kinds = {type(part).__name__ for _, part in loaded.module.named_modules()}
    assert "Linear" in kinds
    assert type(mlp.down_proj).__module__.startswith("mlx.nn"), "it is watched no more"


def test_a_weight_that_float16_cannot_hold_is_named(folder: Path) -> None:
    loaded = in_bfloat16(folder)
    norm = loaded.module.model.norm
    norm.weight = norm.weight * 1e6
    reason = change_to_float16(loaded.module, loaded.vocab_size, is_checked=False)
    assert reason == "model.norm.weight has numbers beyond 65504"


@pytest.mark.parametrize(
    ("architecture", "generation"),
    [
        ("applegpu_g13s", 13),
        ("applegpu_g14", 14),
        ("applegpu_g17p", 17),
        ("x86_64", None),
    ],
)
def test_the_generation_of_a_gpu_is_read_from_its_name(
    monkeypatch: pytest.MonkeyPatch, architecture: str, generation: int | None
) -> None:
    monkeypatch.setattr(mx, "device_info", lambda: {"architecture": architecture})
    assert machine.gpu_generation() == generation
    assert machine.prefers_float16() == (generation in (13, 14))
