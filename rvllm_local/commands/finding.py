"""What a check of `rvllm doctor` came to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: `state` is ok, warning or failed; `advice` says what to do when it is not ok."""

    check: str
    state: str
    detail: str
    advice: str = ""
