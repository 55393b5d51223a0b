"""What `rvllm doctor` says of a device's arithmetic."""

from __future__ import annotations

from rvllm_local.commands.doctor_device import (
    arithmetic_findings,
    judged,
    measured_rates,
)

EVEN = {"float16": 5e12, "bfloat16": 4e12, "float32": 4.8e12}
UNEVEN = {"float16": 20e12, "bfloat16": 20e12, "float32": 8e12}


def test_a_cpu_computes_in_float32() -> None:
    (finding,) = arithmetic_findings()
    assert (finding.state, finding.check) == ("ok", "dtype")
    assert "float32" in finding.detail


def test_an_old_gpu_computes_in_float16() -> None:
    finding = judged(EVEN, 13, narrows=True)
    assert finding.state == "ok"
    assert "compute in float16" in finding.detail
    assert "10.0 in float16, 8.0 in bfloat16, 9.6 in float32" in finding.detail


def test_matrix_units_are_told_by_their_rate() -> None:
    assert judged(UNEVEN, 17, narrows=False).detail.endswith("matrix units are in use")
    finding = judged(EVEN, 17, narrows=False)
    assert finding.state == "warning"
    assert "not in use" in finding.detail
    assert "matrix units" not in judged(EVEN, 15, narrows=False).detail


def test_rates_are_measured_in_each_type() -> None:
    rates = measured_rates(size=8)
    assert list(rates) == ["float16", "bfloat16", "float32"]
    assert min(rates.values()) > 0
