"""Renders a model's chat template in a sandbox: it can read what it is given, and nothing else."""

from __future__ import annotations

import datetime
import functools
import gc
import json
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import CodeType
from typing import Any, NoReturn, cast

import jinja2
from jinja2 import nodes, pass_environment, pass_eval_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rvllm_local.errors import (
    ParameterError,
    TemplateLimitError,
    TemplateRefusedError,
)
from rvllm_local.interrupts import deadline

_SECONDS = 2.0  # real templates take milliseconds
_KEPT_TEMPLATES = 16  # compiling one takes longer than rendering it
_LARGEST = 10_000_000  # characters or items that one operation may make
_LARGEST_TEXT = 50_000_000  # of what grows by being put together
_MOST_MADE = 1_000_000_000  # by all operations of one rendering
_PART = 50  # bytes that a text takes beside its characters
_LARGEST_POWER = 64
_LARGEST_INDENT = 1000
_QUOTED = re.compile(r"'([^']*)'")
_WIDE = re.compile(r"\d{7}|\*")
_WIDE_FIELD = re.compile(r"\d{7}|\{")  # a width may be a field of its own


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
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    RuntimeError,
    SyntaxError,
    MemoryError,
)


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    bos_token: str = "",
    eos_token: str = "",
    **extra: Any,
) -> str:
    """The conversation as the model was trained to read it.

    Raises `ParameterError` with what the template said.
    """
    if not messages:
        raise ParameterError("messages", "messages is empty; give at least one message")
    try:
        with deadline(_SECONDS, TemplateTimeoutError):
            environment = _environment()
            code = _compiled(template)
            globals_ = environment.make_globals(None)
            made = jinja2.Template.from_code(environment, code, globals_)
            text = made.render(
                messages=messages,
                tools=tools,
                documents=documents,
                add_generation_prompt=add_generation_prompt,
                bos_token=bos_token,
                eos_token=eos_token,
                **extra,
            )
    except _REFUSALS as error:
        error.__traceback__ = None  # its frames hold what was made
        raise _refusal(error, template) from None
    return text


def _refusal(error: Exception, template: str) -> ParameterError:
    """What a request is told about an error of its rendering."""
    reason = _reason(error, template)
    message = f"the model's chat template refused the messages: {reason}"
    if isinstance(error, TemplateTimeoutError | _LimitError | MemoryError):
        gc.collect()  # jinja leaves the frames in cycles, and texts count for little there
        return TemplateLimitError("messages", message)
    return TemplateRefusedError("messages", message)


@functools.lru_cache(maxsize=_KEPT_TEMPLATES)
def _compiled(template: str) -> CodeType:
    """A template's code. It knows no environment: each rendering counts for itself."""
    return _environment().compile(template)


def _reason(error: Exception, template: str) -> str:
    """What the template said, as far as the words are its own: those of the messages are not to be repeated."""
    said = str(error)
    if isinstance(error, TemplateTimeoutError) or said in template:
        return said
    quoted = _QUOTED.findall(said)
    is_about_names = isinstance(error, jinja2.UndefinedError) and all(
        name in template for name in quoted[-1:]
    )
    return said if is_about_names or isinstance(error, _OWN) else type(error).__name__


class _Generation(Extension):
    """`{% generation %}` marks the assistant's part for training; here it is a block."""

    tags = {"generation"}  # noqa: RUF012  (jinja's own way)

    def parse(self, parser: Parser) -> nodes.Node:
        """The statements inside, with a scope of their own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Code(CodeGenerator):
    """Lets `~` go through the sandbox, as other operators do."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802  (the name that is overridden)
        self.write("concat(map(str, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")))")


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with an end to what one operation can make: a loop can be interrupted, `"x" * 10**10` cannot.

    All that is made is counted, too: twice as much as before, thirty times over, is soon done. One renders one template.
    """

    intercepted_binops = frozenset(("+", "*", "**", "%"))
    code_generator_class = _Code

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._left = _MOST_MADE

    def spend(self, size: int) -> None:
        """Count what is about to be made. Raises `_LimitError` when it is too much."""
        self._left -= size
        if size > _LARGEST_TEXT or self._left < 0:
            raise _LimitError("a text this long is not allowed")

    def concat(self, parts: Iterable[str]) -> str:
        """What blocks, macros, `~` and the whole template are put together with."""
        return self.joined("", parts)

    def joined(self, between: str, parts: Iterable[str]) -> str:
        """`between.join(parts)`, counted part by part."""
        kept, size = [], 0
        for part in parts:
            size += len(part) + len(between) + _PART
            if size > _LARGEST_TEXT:
                break
            kept.append(part)
        self.spend(size)
        return between.join(kept)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sized = [
            part
            for part in (left, right)
            if isinstance(part, str | bytes | list | tuple)
        ]
        if operator == "%" and isinstance(left, str) and _WIDE.search(left):
            raise _LimitError("a format this wide is not allowed")
        if (
            operator == "*"
            and sized
            and any(
                isinstance(part, int) and part * len(sized[0]) > _LARGEST
                for part in (left, right)
            )
        ):
            raise _LimitError("a repetition this long is not allowed")
        if operator == "**" and (abs(left) > _LARGEST or abs(right) > _LARGEST_POWER):
            raise _LimitError("a power this large is not allowed")
        if operator == "+":
            self.spend(sum(map(len, sized)))
        if operator == "%" and isinstance(left, str):
            self._check_filled(left.count("%"), right)
        made = super().call_binop(context, operator, left, right)
        self.spend(
            len(made) if isinstance(made, str | list | tuple) and operator != "+" else 0
        )
        return made

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        text = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)
        if isinstance(text, str):
            if obj.__name__ == "join":
                return self.joined(text, *args, **kwargs)
            self.check_method(obj.__name__, text, (*args, *kwargs.values()))
        made = super().call(context, obj, *args, **kwargs)
        self.spend(len(made) if isinstance(made, str | list | tuple) else 0)
        return made

    def check_method(self, name: str, text: str, given: Sequence[Any]) -> None:
        """Refuse a method of a text that could make much more than it is given."""
        if name in ("translate", "expandtabs", "format_map"):
            raise _LimitError(f"{name} is not allowed")
        if any(isinstance(value, int) and value > _LARGEST for value in given):
            raise _LimitError("a text this long is not allowed")
        if name == "format":
            if any(
                _WIDE_FIELD.search(spec or "")
                for _, _, spec, _ in string.Formatter().parse(text)
            ):
                raise _LimitError("a format this wide is not allowed")
            self._check_filled(text.count("{"), tuple(given))
        if name == "replace" and len(given) > 1:
            self.spend(text.count(given[0]) * len(given[1]))

    def _check_filled(self, places: int, values: Any) -> None:
        """Count what a text with places for values may become."""
        each = (
            values.values()
            if isinstance(values, Mapping)
            else values
            if isinstance(values, tuple)
            else (values,)
        )
        self.spend(
            places
            * max((len(value) for value in each if isinstance(value, str)), default=0)
        )


def _environment() -> ImmutableSandboxedEnvironment:
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    limits = {
        "center": _LARGEST,
        "indent": _LARGEST_INDENT,
        "batch": _LARGEST_INDENT,
        "slice": _LARGEST_INDENT,
    }
    for name, largest in limits.items():
        environment.filters[name] = _bounded(environment.filters[name], largest)
    environment.filters["join"] = _join
    environment.filters["format"] = _format
    environment.filters["replace"] = _replace
    environment.filters["tojson"] = _bounded(_to_json, _LARGEST_INDENT)
    del environment.filters["wordwrap"], environment.globals["lipsum"]
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    return environment


def _bounded(function: Callable[..., Any], largest: int) -> Callable[..., Any]:
    """A filter that takes no width beyond the limit."""

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if any(
            isinstance(value, int) and value > largest
            for value in (*args[1:], *kwargs.values())
        ):
            raise _LimitError("a text this long is not allowed")
        return function(*args, **kwargs)

    return checked


@pass_eval_context
def _join(
    context: nodes.EvalContext, value: Iterable[Any], d: Any = "", attribute: Any = None
) -> str:
    environment = cast(_Sandbox, context.environment)
    each = (
        value
        if attribute is None
        else map(make_attrgetter(environment, attribute), value)
    )
    return environment.joined(str(d), map(str, each))


@pass_environment
def _format(environment: _Sandbox, value: Any, *args: Any, **kwargs: Any) -> Any:
    """As the operator: `"%s" % value`."""
    return environment.call_binop(None, "%", str(value), kwargs or args)


@pass_environment
def _replace(
    environment: _Sandbox, value: Any, old: Any, new: Any, count: int = -1
) -> str:
    environment.check_method("replace", str(value), (str(old), str(new)))
    return str(value).replace(str(old), str(new), count)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: jinja's own filter escapes for HTML, which models were not trained on."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.datetime.now().astimezone().strftime(pattern)
