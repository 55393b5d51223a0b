"""Activations by blocks on a CPU are the functions of their names."""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from rvllm_local.models.encoders import cpu_activations
from rvllm_local.models.encoders.cpu_activations import gelu, gelu_approx, silu


def _true_gelu(x: float) -> float:
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def _true_gelu_approx(x: float) -> float:
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return 0.5 * x * (1 + math.tanh(inner))


def _true_silu(x: float) -> float:
    return x / (1 + math.exp(-x))


FUNCTIONS = [(gelu, _true_gelu), (gelu_approx, _true_gelu_approx), (silu, _true_silu)]


@pytest.mark.parametrize(("function", "true"), FUNCTIONS)
def test_the_function_is_true_to_a_millionth(
    function: Callable[[mx.array], mx.array], true: Callable[[float], float]
) -> None:
    inputs = np.linspace(-16, 16, 12_289, dtype=np.float32)
    expected = np.array([true(float(x)) for x in inputs])
    outputs = np.array(function(mx.array(inputs)))
    np.testing.assert_allclose(outputs, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("function", [gelu, gelu_approx, silu])
def test_far_numbers_neither_overflow_nor_warn(
    function: Callable[[mx.array], mx.array],
) -> None:
    outputs = np.array(function(mx.array([1e30, math.inf, 1e-30, 0.0, -1e9])))
    assert outputs[0] == np.float32(1e30)
    assert outputs[1] == math.inf
    assert outputs[2] == np.float32(5e-31)
    assert outputs[3] == 0
    assert abs(outputs[4]) < 1e-12


@pytest.mark.parametrize("function", [gelu, gelu_approx, silu])
def test_what_is_no_number_stays_none(
    function: Callable[[mx.array], mx.array],
) -> None:
    assert np.isnan(np.array(function(mx.array([math.nan, 1.0])))).tolist() == [
        True,
        False,
    ]


def test_blocks_and_shapes_change_nothing() -> None:
    size = 2 * cpu_activations._BLOCK + 6
    numbers = mx.random.normal((2, size // 2), key=mx.random.key(0))
    whole = np.array(gelu(numbers))
    assert whole.shape == (2, size // 2)
    by_row = np.stack([np.array(gelu(row)) for row in numbers])
    np.testing.assert_array_equal(whole, by_row)


def test_parts_of_another_array_are_read_as_they_are() -> None:
    joined = mx.random.normal((3, 8), key=mx.random.key(0))
    left, right = mx.split(joined, 2, axis=-1)
    np.testing.assert_array_equal(np.array(gelu(joined))[:, :4], np.array(gelu(left)))
    np.testing.assert_array_equal(np.array(gelu(joined))[:, 4:], np.array(gelu(right)))
    assert gelu(mx.zeros((0, 4))).shape == (0, 4)
