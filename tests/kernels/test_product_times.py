"""The table that tells what the quantized products gain."""

from __future__ import annotations

from rvllm_local.metal_kernels.proof.product_times import (
    Build,
    Layer,
    ProductTime,
    measure_products,
    product_table,
)


def test_each_layer_is_timed_at_each_number_of_rows() -> None:
    calls: list[Build] = []

    def timer(build: Build) -> float:
        calls.append(build)
        return 1.0 / len(calls)

    layers = (Layer("plain", 16, 64), Layer("experts", 8, 64, experts=8))
    times = list(measure_products(layers, (1, 3), timer=timer))
    assert [(time.layer, time.rows) for time in times] == [
        ("plain", 1),
        ("plain", 3),
        ("experts", 1),
        ("experts", 3),
    ]
    kernels = [time.kernel for time in times]
    assert kernels == ["lanes", "lanes", "gathered", "gathered"]


def test_a_line_names_layer_rows_times_and_gain() -> None:
    table = product_table([ProductTime("down", 8, 200e-6, 50e-6, "lanes")])
    head, line = table.splitlines()
    assert head.split() == ["4-bit", "product", "rows", "MLX", "ours", "gain"]
    assert line.split() == ["down", "8", "200", "us", "50", "us", "4.00x", "lanes"]
