"""Renders a model's chat template in a sandbox: it can read what it is given, and nothing else."""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rvllm_local.errors import ParameterError
from rvllm_local.interrupts import deadline

_SECONDS = 2.0  # real templates take milliseconds
_LARGEST = 10_000_000  # characters or items that one operation may make
_LARGEST_POWER = 64
_QUOTED = re.compile(r"'([^']*)'")
_WIDE = re.compile(r"\d{7}|\*")


class TemplateTimeoutError(Exception):
    """A template ran for too long."""

    def __str__(self) -> str:
        return f"it ran for more than {_SECONDS:g} seconds"


class _LimitError(jinja2.TemplateError):
    """One operation of a template would have made too much."""


_OWN = (_LimitError, jinja2.TemplateSyntaxError, SecurityError)
_REFUSALS = (
    jinja2.TemplateError,
    TemplateTimeoutError,
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RecursionError,
    MemoryError,
)


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    bos_token: str = "",
    eos_token: str = "",
    **extra: Any,
) -> str:
    """The conversation as the model was trained to read it. Raises `ParameterError` with what the template said."""
    if not messages:
        raise ParameterError("messages", "messages is empty; give at least one message")
    try:
        with deadline(_SECONDS, TemplateTimeoutError):
            text = (
                _environment()
                .from_string(template)
                .render(
                    messages=messages,
                    tools=tools,
                    add_generation_prompt=add_generation_prompt,
                    bos_token=bos_token,
                    eos_token=eos_token,
                    **extra,
                )
            )
    except _REFUSALS as error:
        raise ParameterError(
            "messages", f"the model's chat template refused the messages: {_reason(error, template)}"
        ) from None
    return text


def _reason(error: Exception, template: str) -> str:
    """What the template said, as far as the words are its own: those of the messages are not to be repeated."""
    said = str(error)
    if isinstance(error, TemplateTimeoutError) or said in template:
        return said
    quoted = _QUOTED.findall(said)
    is_about_names = isinstance(error, jinja2.UndefinedError) and all(name in template for name in quoted[-1:])
    return said if is_about_names or isinstance(error, _OWN) else type(error).__name__


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with an end to what one operation can make: a loop can be interrupted, `"x" * 10**10` cannot."""

    intercepted_binops = frozenset(("*", "**", "%"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sized = [part for part in (left, right) if isinstance(part, str | bytes | list | tuple)]
        if operator == "%" and isinstance(left, str) and _WIDE.search(left):
            raise _LimitError("a format this wide is not allowed")
        if (
            operator == "*"
            and sized
            and any(isinstance(part, int) and part * len(sized[0]) > _LARGEST for part in (left, right))
        ):
            raise _LimitError("a repetition this long is not allowed")
        if operator == "**" and (abs(left) > _LARGEST or abs(right) > _LARGEST_POWER):
            raise _LimitError("a power this large is not allowed")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        of_text = isinstance(getattr(obj, "__self__", None), str)
        if of_text and any(isinstance(value, int) and value > _LARGEST for value in (*args, *kwargs.values())):
            raise _LimitError("a text this long is not allowed")
        return super().call(context, obj, *args, **kwargs)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    for name in ("center", "indent"):
        environment.filters[name] = _bounded(environment.filters[name])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    return environment


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that takes no width beyond the limit."""

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(value, int) and value > _LARGEST for value in (*args, *kwargs.values())):
            raise _LimitError("a text this long is not allowed")
        return function(*args, **kwargs)

    return checked


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    """Plain JSON: jinja's own filter escapes for HTML, which models were not trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.datetime.now().astimezone().strftime(pattern)
