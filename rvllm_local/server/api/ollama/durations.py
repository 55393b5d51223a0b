"""Times as Ollama's clients write them, and as they read them."""

from __future__ import annotations

import datetime
import math
import re

from rvllm_local.server.http.problems import bad_request

FOREVER = math.inf
_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_UNITS = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_CENTURY_S = 100 * 365.25 * 86400


def keep_alive_seconds(value: float | str | None) -> float | None:
    """How long a model stays loaded; below zero means for ever, None says nothing.

    A number counts seconds; a text is like 5m or 1h30m. Raises `Problem`.
    """
    if value is None:
        return None
    if isinstance(value, str):
        value = _seconds(value.strip())
    if math.isnan(value):
        raise _no_time()
    return FOREVER if value < 0 else float(value)


def _seconds(text: str) -> float:
    if not text:
        raise _no_time()
    if _NUMBER.fullmatch(text):
        return float(text)
    sign = -1.0 if text.startswith("-") else 1.0
    bare = text.lstrip("+-")
    parts = _PART.findall(bare)
    if "".join(number + unit for number, unit in parts) != bare or not parts:
        raise _no_time()
    return sign * sum(float(number) * _UNITS[unit] for number, unit in parts)


def _no_time() -> Exception:
    return bad_request(
        "keep_alive must be seconds, or a time like 5m, 1h30m, 0 or -1", "keep_alive"
    )


def timestamp(seconds: float) -> str:
    """A moment, in seconds of the epoch, in the form of RFC 3339."""
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def expiry(now: float, left_s: float) -> str:
    """When a model is unloaded that nobody asks for; a century away for never."""
    return timestamp(now + min(left_s, _CENTURY_S))
