"""`rvllm doctor`: what this machine is, whether the runtime is well on it, and what to do about each finding."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rvllm_local import host
from rvllm_local.commands.finding import Finding
from rvllm_local.config import load_config

_PACKAGES = ("mlx", "mlx-lm", "numpy", "tokenizers", "llguidance", "textual")


def doctor(arguments: argparse.Namespace) -> int:
    """Print the findings; exit status 1 if one failed."""
    report = host.prepare()
    if arguments.hosts is not None:
        findings = _hosts(arguments.hosts)
    else:
        findings = [
            _machine(),
            _versions(),
            _blas(report),
            *_cpu_weights(),
            _memory(),
            _disk(),
            *_store(arguments.verify),
            _backend(),
            *_arithmetic(),
        ]
    kernels: dict[str, Any] = {}
    if arguments.kernels:
        kernel_findings, kernels = _kernels(_say if not arguments.json else _silent)
        findings += kernel_findings
    if arguments.json:
        value = {
            "findings": [dataclasses.asdict(finding) for finding in findings],
            "kernels": kernels,
        }
        sys.stdout.write(json.dumps(value, indent=1) + "\n")
    else:
        for finding in findings:
            _say(f"{finding.state:<8}{finding.check:<12}{finding.detail}")
            if finding.advice:
                _say(f"{'':20}-> {finding.advice}")
    return 1 if any(finding.state == "failed" for finding in findings) else 0


def _hosts(path: str) -> list[Finding]:
    from rvllm_local.commands.doctor_hosts import hosts_findings

    return hosts_findings(Path(path))


def _arithmetic() -> list[Finding]:
    from rvllm_local.commands.doctor_device import arithmetic_findings

    return arithmetic_findings()


def _machine() -> Finding:
    return Finding(
        "machine",
        "ok",
        f"{platform.system()} {platform.release()}, {platform.machine()}, Python {platform.python_version()}",
    )


def _versions() -> Finding:
    installed = []
    for name in _PACKAGES:
        try:
            installed.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            installed.append(f"{name} missing")
    missing = [text for text in installed if text.endswith("missing")]
    advice = (
        "install the package again: pip install --force-reinstall rvllm-local"
        if missing
        else ""
    )
    return Finding(
        "versions", "failed" if missing else "ok", ", ".join(installed), advice
    )


def _blas(report: host.HostReport) -> Finding:
    return Finding(
        "BLAS",
        "ok" if report.is_fast_blas else "warning",
        report.blas,
        report.advice or "",
    )


def _cpu_weights() -> list[Finding]:
    """Whether quantized models stay so on a CPU; nothing to say elsewhere."""
    from rvllm_local.machine import is_on_cpu
    from rvllm_local.models.cpu.runtime import missing_runtime

    if not is_on_cpu():
        return []
    name, reason = "weights", missing_runtime()
    if reason is None:
        return [Finding(name, "ok", "4 and 8 bits stay so, through onnxruntime")]
    what, _, advice = reason.partition(": ")
    return [Finding(name, "warning", what, advice)]


def _memory() -> Finding:
    from rvllm_local.machine import device_memory
    from rvllm_local.memory.plan import default_reserve

    device = device_memory()
    reserve = load_config().options.system_reserve or default_reserve(device)
    return Finding(
        "memory",
        "ok",
        f"{device / 1e9:.1f} GB for the device, {reserve / 1e9:.1f} GB of it left to the system",
    )


def _disk() -> Finding:
    config = load_config()
    folder = config.cache_dir
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    detail = f"{free / 1e9:.1f} GB free for {config.cache_dir}"
    if free < 2 * 10**9:
        return Finding(
            "disk",
            "warning",
            detail,
            "free some space: models and cached KV are kept there, or set cache_dir",
        )
    return Finding("disk", "ok", detail)


def _store(verify: bool) -> list[Finding]:
    """What lies in the store: whole models, what cut downloads left, and with `verify` every checksum."""
    cache_dir = load_config().cache_dir
    from rvllm_local.commands.model_facts import unsound
    from rvllm_local.models.store import folder_size, installed, leftovers

    models, left = installed(cache_dir), leftovers(cache_dir)
    size = sum(model.size for model in models)
    detail = f"{len(models)} models, {size / 1e9:.1f} GB"
    findings = [Finding("store", "ok", detail)]
    for model in models:
        name = model.names[0]
        if (fault := unsound(model, verify=verify, cache_dir=cache_dir)) is not None:
            advice = f"remove and fetch it again: rvllm rm {name} && rvllm pull {name}"
            findings.append(Finding("store", "failed", f"{name}: {fault}", advice))
    if left:
        waste = sum(folder_size(path) for path in left)
        advice = f"pull the model again to go on where it stopped, or remove {left[0]}"
        findings.append(
            Finding(
                "store",
                "warning",
                f"{waste / 1e6:.0f} MB of {len(left)} cut downloads or removals",
                advice,
            )
        )
    return findings


def _backend() -> Finding:
    from rvllm_local.metal_kernels import default_backend

    backend = default_backend()
    if backend == "none":
        return Finding("attention", "ok", "reference (no Metal or CUDA device here)")
    return Finding(
        "attention",
        "ok",
        f"the project's kernels on {backend}; `rvllm doctor --kernels` proves them here",
    )


def _kernels(say: Callable[[str], None]) -> tuple[list[Finding], dict[str, Any]]:
    """Every variant against the float64 oracle, GB/s beside a plain copy, products beside MLX's."""
    from rvllm_local.metal_kernels import default_backend
    from rvllm_local.metal_kernels.proof import bandwidth, product_times, suite

    backend = default_backend()
    if backend == "none":
        detail = "no Metal or CUDA device: the kernels cannot run here (tests run their text in an emulator)"
        return [
            Finding("kernels", "warning", detail, "run this on an Apple Silicon Mac")
        ], {"backend": backend}
    failures, results = 0, []
    for name, check in suite.cases():
        error = suite.failure(check)
        failures += error is not None
        results.append({"check": name, "ok": error is None, "error": error})
        say(
            f"{'ok' if error is None else 'FAILED':<8}{name}{'' if error is None else f': {error}'}"
        )
    copy, rows = bandwidth.measure(scale=1 if backend == "cuda" else 4)
    say(bandwidth.table(copy, rows))
    products = list(product_times.measure_products())
    say(product_times.product_table(products))
    measured = [
        {**dataclasses.asdict(row), "bytes_per_s": row.bytes_per_s} for row in rows
    ]
    finding = Finding("kernels", "failed" if failures else "ok", f"{len(results) - failures} of {len(results)} checks passed",
                    "set attention = \"reference\" and report the failed checks" if failures else "")  # fmt: skip
    return [finding], {
        "backend": backend,
        "checks": results,
        "copy_bytes_per_s": copy,
        "bandwidth": measured,
        "products": [dataclasses.asdict(time) for time in products],
    }


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _silent(_text: str) -> None:
    pass
