"""What the output must follow, in whatever form the client says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from rvllm_local.server.api.common import Object
from rvllm_local.server.api.openai.schema import Sampling
from rvllm_local.server.http.problems import bad_request

Form = Mapping[str, Any]
# Of vLLM's `structured_outputs`: values that ask for nothing; the others are formats.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "disable_any_whitespace": (False,),
    "disable_additional_properties": (False,),
    "disable_fallback": (True, False),
}


def read_format(request: Sampling, response_format: Form | None) -> Form | None:
    """The one format that is asked for. Raises `Problem`."""
    formats = _guided(request)
    if response_format is not None:
        formats["response_format"] = _nested(response_format)
    if len(formats) > 1:
        names = list(formats)
        raise bad_request(f"{' and '.join(names)} exclude each other", names[0])
    return next(iter(formats.values()), None)


def _nested(form: Form) -> Form:
    """The format with its schema a level deeper, if it stands where llama.cpp has it."""
    if form.get("type") == "json_schema" and "json_schema" not in form:
        named = {name: value for name, value in form.items() if name != "type"}
        if "schema" in named:
            return {"type": "json_schema", "json_schema": named}
    return form


def _guided(request: Sampling) -> dict[str, Form]:
    """The formats that other fields ask for, by the field's name."""
    formats = _structured(request.structured_outputs or {})
    for name in ("guided_regex", "regex"):
        if (regex := getattr(request, name)) is not None:
            formats[name] = {"type": "regex", "regex": regex}
    if request.guided_choice is not None:
        formats["guided_choice"] = {"type": "choice", "choices": request.guided_choice}
    if request.guided_grammar is not None:
        grammar = {"type": "grammar", "grammar": request.guided_grammar}
        formats["guided_grammar"] = grammar
    for name in ("guided_json", "json_schema"):
        if (schema := getattr(request, name)) is not None:
            formats[name] = _schema_form(schema, name)
    return formats


def _structured(outputs: Object) -> dict[str, Form]:
    """The format in vLLM's `structured_outputs`, under that field's name."""
    given = {}
    for name, value in outputs.items():
        if value is not None and value not in _NEUTRAL.get(name, ()):
            given[name] = value
    if not given:
        return {}
    match given:
        case {"json": dict(schema) | str(schema), **rest} if not rest:
            form = _schema_form(schema, "structured_outputs.json")
        case {"regex": str(regex), **rest} if not rest:
            form = {"type": "regex", "regex": regex}
        case {"choice": list(choices), **rest} if not rest:
            form = {"type": "choice", "choices": choices}
        case {"grammar": str(grammar), **rest} if not rest:
            form = {"type": "grammar", "grammar": grammar}
        case {"json_object": True, **rest} if not rest:
            form = {"type": "json_object"}
        case _:
            raise bad_request(
                "structured_outputs: use one of json, regex, choice, grammar, "
                "json_object, and nothing beside it",
                "structured_outputs",
            )
    return {"structured_outputs": form}


def _schema_form(schema: Object | str, field: str) -> Form:
    """The format of a schema, which may be given as JSON text."""
    if isinstance(schema, str):
        try:
            schema = msgspec.json.decode(schema, type=dict)
        except msgspec.DecodeError:
            raise bad_request(
                f"{field} must be a schema, or one as JSON text", field
            ) from None
    named = {"name": "answer", "schema": schema}
    return {"type": "json_schema", "json_schema": named}
