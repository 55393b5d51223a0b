"""`rvllm bench`: runs one of its verbs, whose module is imported only then."""

from __future__ import annotations

import argparse
from collections.abc import Callable

Run = Callable[[argparse.Namespace], int]


def bench(arguments: argparse.Namespace) -> int:
    """Run one verb and return its exit status."""
    return _verb(arguments.bench)(arguments)


def _verb(name: str) -> Run:
    if name == "serve":
        from rvllm_local.bench.serve import serve

        return serve
    if name == "decode":
        from rvllm_local.bench.in_process import decode

        return decode
    if name == "prefill":
        from rvllm_local.bench.in_process import prefill

        return prefill
    if name == "kernels":
        from rvllm_local.bench.kernels import kernels

        return kernels
    if name == "startup":
        from rvllm_local.bench.startup import startup

        return startup
    from rvllm_local.bench.compare import compare

    return compare
