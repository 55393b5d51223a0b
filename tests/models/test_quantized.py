"""How a layer is packed: by the map, or by its shapes where the map does not name it."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from rvllm_local.errors import ModelFileError
from rvllm_local.models.quantized import quantize_as_stored

GENERAL = {"group_size": 64, "bits": 4}


class Two(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(128, 64, bias=False)
        self.second = nn.Linear(128, 64, bias=False)


def packed(**layers: dict[str, int]) -> dict[str, mx.array]:
    """The weights of a module whose layers are packed each in its own way."""
    module = Two()
    nn.quantize(module, class_predicate=lambda path, _: layers[path])
    return dict(tree_flatten(module.parameters()))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_bits_of_a_layer_that_the_map_does_not_name(bits: int, group_size: int) -> None:
    other = {"bits": bits, "group_size": group_size}
    weights = packed(first=GENERAL, second=other)
    module = Two()
    quantize_as_stored(module, {"quantization": GENERAL}, weights)
    module.load_weights(list(weights.items()))
    assert (module.first.bits, module.first.group_size) == (4, 64)
    assert (module.second.bits, module.second.group_size) == (bits, group_size)


def test_a_map_that_contradicts_the_shapes_is_refused_with_both() -> None:
    weights = packed(first=GENERAL, second={"bits": 8, "group_size": 64})
    plan = {**GENERAL, "second": GENERAL}
    with pytest.raises(ModelFileError, match=r"4 bits .*second.*shapes.*\[64, 32\]"):
        quantize_as_stored(Two(), {"quantization": plan}, weights)


def test_shapes_that_no_packing_has_are_refused() -> None:
    weights = packed(first=GENERAL, second=GENERAL)
    weights["second.weight"] = mx.zeros((64, 7), dtype=mx.uint32)
    with pytest.raises(ModelFileError, match="second"):
        quantize_as_stored(Two(), {"quantization": GENERAL}, weights)


def test_a_layer_that_is_not_packed_stays_as_it_is() -> None:
    weights = packed(first=GENERAL, second=GENERAL)
    del weights["second.scales"], weights["second.biases"]
    weights["second.weight"] = mx.zeros((64, 128))
    module = Two()
    quantize_as_stored(module, {"quantization": GENERAL}, weights)
    assert isinstance(module.second, nn.Linear)
