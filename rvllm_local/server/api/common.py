"""What the dialects share: kinds of fields, bounds, and the end of a failed choice."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from rvllm_local.conversation.calls import Ended
from rvllm_local.conversation.reading import Reading
from rvllm_local.errors import error_of
from rvllm_local.param_values import MAX_INTEGER
from rvllm_local.server.http import json_body
from rvllm_local.server.http.problems import (
    Problem,
    bad_request,
    problem_of,
    unsupported,
)
from rvllm_local.types import FinishReason

Object = dict[str, Any]
T = TypeVar("T", bound=msgspec.Struct)
MAX_PRIORITY = 100
# How many tokens of thinking an effort allows; None leaves it to the model.
EFFORT_TOKENS: Mapping[str, int | None] = {
    "none": 0,
    "minimal": 128,
    "low": 1024,
    "medium": 8192,
    "high": None,
    "xhigh": None,
    "max": None,
}


class Strict(
    msgspec.Struct, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """A request's object, in which every field is known."""


class StreamOptions(Strict):
    """What a stream tells beside text."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


def new_id(prefix: str) -> str:
    """A fresh id, in the form that an API's clients expect."""
    return f"{prefix}{uuid.uuid4().hex}"


SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def given_fields(request: msgspec.Struct, *names: str) -> dict[str, Any]:
    """Those of the named fields that a request sets."""
    values = {}
    for name in names:
        value = getattr(request, name)
        if value is not None:
            values[name] = value
    return values


def stated_sampling(request: msgspec.Struct) -> frozenset[str]:
    """The sampling parameters that a request sets; a model may have its own others."""
    names = set()
    for name in SAMPLING:
        if getattr(request, name, None) is not None:
            names.add(name)
    return frozenset(names)


def checked_budget(tokens: int, name: str, least: int = 0) -> int:
    """Tokens of thinking that the field `name` allows. Raises `Problem`."""
    if not least <= tokens <= MAX_INTEGER:
        raise bad_request(
            f"{name} must be from {least} to {MAX_INTEGER}, not {tokens}", name
        )
    return tokens


def checked_priority(priority: int) -> int:
    """A request's priority. Raises `Problem`."""
    if abs(priority) > MAX_PRIORITY:
        raise bad_request(
            f"priority must be from -{MAX_PRIORITY} to {MAX_PRIORITY}, not {priority}",
            "priority",
        )
    return priority


def convert_part(value: Any, kind: type[T], where: str, reading: Reading) -> T:
    """A part of a body, which stands at `where`, as a `kind`. Raises `Problem`."""
    return json_body.convert(
        value, kind, where, is_lenient=reading.is_lenient, dropped=reading.left_out
    )


def raise_failed(ended: Ended) -> None:
    """Raise the `Problem` of a choice that did not end well."""
    if ended.error is not None:
        error = error_of(ended.error_kind, ended.error, ended.error_parameter)
        raise problem_of(error)
    if ended.reason is FinishReason.CANCELLED:
        raise Problem(503, "the request was cancelled", "cancelled")


def refuse_unsupported(
    request: msgspec.Struct, neutral: Mapping[str, tuple[Any, ...]]
) -> None:
    """Raise `Problem` 400 for a field whose value would change something.

    `neutral` holds fields that cannot be honoured, with the values that ask for nothing.
    """
    for name, values in neutral.items():
        value = getattr(request, name, None)
        if value is None or value in values:
            continue
        raise unsupported(name, values)
