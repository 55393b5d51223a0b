"""Says whether a JSON schema can be enforced to the letter, and brings it into the form that is compiled.

A keyword that would be ignored or half enforced is refused by name and place. It knows JSON Schema as the drafts 6 to
2020-12 have it, and what llguidance does with it; it makes no grammar.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from rvllm_local.errors import ParameterError
from rvllm_local.text.grammar.regex import PatternError, portable

MAX_SCHEMA_CHARS = 1 << 20
MAX_DEPTH = 64
MAX_SCHEMAS = 5000  # schemas within one schema
MAX_ENUM = 5000
MAX_COUNT = 10_000  # minItems, maxLength and their like
# Blank space is bounded, or a weak model writes it for ever. Without \u there is one spelling of every string,
# which keeps a key that is spelled otherwise from escaping its schema, and halves of surrogate pairs out.
_OPTIONS = {"whitespace_pattern": "[ \\t\\n]{1,40}", "json_allowed_escapes": 'nrbtf\\"'}
_DRAFTS = (
    "draft-06/schema",
    "draft-07/schema",
    "draft/2019-09/schema",
    "draft/2020-12/schema",
)
_ANNOTATIONS: dict[str, type] = {
    **dict.fromkeys(("title", "description", "$comment", "$schema", "$id"), str),
    **dict.fromkeys(("deprecated", "readOnly", "writeOnly"), bool),
    "examples": list,
    "default": object,
}
_REASONS = {
    "uniqueItems": "unique items cannot be enforced",
    "not": "negation cannot be enforced",
    "unevaluatedProperties": "use additionalProperties",
    "unevaluatedItems": "use items",
    "nullable": "use a type list with null",
    "$dynamicRef": "use $ref",
    "$recursiveRef": "use $ref",
}
_TYPES = frozenset(
    {"null", "boolean", "integer", "number", "string", "array", "object"}
)
_FORMATS = frozenset(
    {
        "date-time",
        "date",
        "duration",
        "email",
        "hostname",
        "ipv4",
        "ipv6",
        "uuid",
        "uri",
    }
)
# What llguidance's formats let through: year 0, the 29th of February in any year, leap seconds, long names.
_LEAP = "0[48]|[2468][048]|[13579][26]"
_DATE = (
    "^(?:(?:[0-9]{3}[1-9]|[0-9]{2}[1-9][0-9]|[0-9][1-9][0-9]{2}|[1-9][0-9]{3})"
    "-(?:02-(?:0[1-9]|1[0-9]|2[0-8])|(?:0[13-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01]))"
    f"|(?:[0-9]{{2}}(?:{_LEAP})|(?:{_LEAP})00)-02-29)"
)
_FORMAT_LIMITS: dict[str, dict[str, Any]] = {
    "date": {"pattern": f"{_DATE}$"},
    "date-time": {"pattern": f"{_DATE}[Tt][0-9]{{2}}:[0-9]{{2}}:[0-5]"},
    "hostname": {"maxLength": 253},
}
_MAX_LITERAL_CHARS = 10_000
_MAX_INTEGER = 10**15  # floats hold every integer up to here, and far more
_MAX_FRACTION = 10**12
_DROPPED = object()  # what a rule returns for a keyword that demands nothing
Path = tuple[str, ...]


def enforceable(
    schema: Any, parameter: str = "response_format", *, lenient: bool = False
) -> dict[str, Any]:
    """The schema to compile. Raises `ParameterError` with the place and the keyword that cannot be enforced.

    `lenient` leaves such keywords out instead: for tools whose authors did not ask for strictness.
    """
    if schema is True:
        schema = {}
    if schema is False:
        raise ParameterError(parameter, "the schema is false, which nothing satisfies")
    options = {**_OPTIONS, "lenient": True} if lenient else _OPTIONS
    return {"x-guidance": options, **_Walk(schema, parameter, lenient).run()}


class _UnsupportedError(Exception):
    """A keyword is sound, but cannot be enforced."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(message)
        self.path, self.message = path, message


class _Walk:
    """One walk over a schema: every keyword is either understood or refused."""

    def __init__(self, schema: Any, parameter: str, lenient: bool) -> None:
        self._root = schema
        self._parameter = parameter
        self._lenient = lenient
        self._places: dict[
            Path, tuple[Any, ...]
        ] = {}  # every schema, and what applies in the same place
        self._refs: list[tuple[Path, str, Path]] = []
        self._rules = self._keyword_rules()
        self._wide: dict[
            Path, str
        ] = {}  # what any reader matches, by the place of an object and its pattern
        self._draft = _DRAFTS[-1]

    def run(self) -> dict[str, Any]:
        if not isinstance(self._root, Mapping):
            raise self._error(
                (), f"must be an object or a boolean, not {type(self._root).__name__}"
            )
        self._check_size()
        self._draft = self._draft_of(self._root.get("$schema"))
        done = self._schema(self._root, ())
        self._check_refs()
        assert isinstance(done, dict)
        return done

    def _error(self, path: Path, message: str) -> ParameterError:
        place = "/".join(("#", *path))
        place = place if len(place) <= 120 else place[:117] + "..."
        return ParameterError(
            self._parameter, f"the schema cannot be enforced: {place} {message}"
        )

    def _check_size(self) -> None:
        try:
            text = json.dumps(self._root, allow_nan=False)
        except RecursionError as error:
            raise self._error((), f"nests deeper than {MAX_DEPTH}") from error
        except (ValueError, TypeError) as error:
            raise self._error((), f"is not plain JSON ({error})") from error
        if len(text) > MAX_SCHEMA_CHARS:
            raise self._error(
                (), f"has {len(text)} characters; at most {MAX_SCHEMA_CHARS} are taken"
            )

    def _draft_of(self, name: Any) -> str:
        if name is None:
            return _DRAFTS[-1]
        for draft in _DRAFTS:
            if (
                isinstance(name, str)
                and name.rstrip("#").split("://")[-1] == f"json-schema.org/{draft}"
            ):
                return draft
        raise self._error(
            (),
            "has a $schema that is not supported; use draft 6, 7, 2019-09 or 2020-12",
        )

    # Schemas and keywords.

    def _schema(self, schema: Any, path: Path) -> Any:
        if len(path) > 2 * MAX_DEPTH:
            raise self._error(path, f"nests deeper than {MAX_DEPTH}")
        self._places[path] = ()
        if len(self._places) > MAX_SCHEMAS:
            raise self._error((), f"holds more than {MAX_SCHEMAS} schemas")
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, Mapping):
            raise self._error(path, "must be an object or a boolean")
        done: dict[str, Any] = {}
        for key, value in schema.items():
            try:
                kept = self._keyword(key, value, path)
            except _UnsupportedError as error:
                if not self._lenient:
                    raise self._error(error.path, error.message) from error
                continue
            if kept is not _DROPPED:
                done[key] = kept
        self._places[path] = tuple(self._in_place(schema, path))
        self._check_together(done, path)
        return done

    def _keyword(self, key: str, value: Any, path: Path) -> Any:
        if key in _ANNOTATIONS:
            if not isinstance(value, _ANNOTATIONS[key]):
                raise _UnsupportedError(path, f"has a {key} that is of the wrong type")
            if key == "$id" and path:
                raise self._error(
                    path, "has an $id, which only the outermost schema may have"
                )
            return _DROPPED
        rule = self._rules.get(key)
        if rule is None or (key == "uniqueItems" and value is not False):
            reason = _REASONS.get(key, "the keyword is not supported")
            raise _UnsupportedError(path, f"uses {key[:60]!r}: {reason}")
        return rule(value, (*path, key))

    def _keyword_rules(self) -> dict[str, Callable[[Any, Path], Any]]:
        counts = (
            "minLength",
            "maxLength",
            "minItems",
            "maxItems",
            "minProperties",
            "maxProperties",
        )
        limits = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
        return {
            **dict.fromkeys(counts, self._count),
            **dict.fromkeys(limits, self._limit),
            **dict.fromkeys(
                ("allOf", "anyOf", "oneOf", "prefixItems"), self._schema_list
            ),
            **dict.fromkeys(("properties", "$defs", "definitions"), self._schema_map),
            **dict.fromkeys(("additionalProperties", "additionalItems"), self._schema),
            "items": self._items,
            "patternProperties": self._pattern_map,
            "type": self._type,
            "enum": self._enum,
            "const": self._literal,
            "required": self._required,
            "pattern": self._pattern,
            "format": self._format,
            "multipleOf": self._multiple,
            "uniqueItems": lambda value, path: _DROPPED,
            "$ref": self._ref,
        }

    def _count(self, value: Any, path: Path) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self._error(path, "must be a whole number, not negative")
        if value > MAX_COUNT:
            raise self._error(path, f"is {value}; at most {MAX_COUNT} can be enforced")
        return value

    def _number(self, value: Any, path: Path) -> float:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise self._error(path, "must be a number")
        if abs(value) > _MAX_INTEGER or 0 < abs(value) < 1e-9:
            raise self._error(
                path,
                f"is too large or too small; numbers up to {_MAX_INTEGER:.0e} can be enforced",
            )
        return value

    def _limit(self, value: Any, path: Path) -> float:
        return self._number(value, path)

    def _multiple(self, value: Any, path: Path) -> float:
        """Binary fractions only: validators that divide floats find 0.3 no multiple of 0.1."""
        number = self._number(value, path)
        if number <= 0 or float(number).as_integer_ratio()[1] > 1024:
            raise _UnsupportedError(
                path,
                "must be above zero, and a whole number or a binary fraction such as 0.25",
            )
        return number

    def _schema_list(self, value: Any, path: Path) -> list[Any]:
        if path[-1] == "prefixItems" and self._draft != _DRAFTS[-1]:
            raise self._error(path, "does not belong to this $schema; use items")
        if not isinstance(value, list) or not value:
            raise self._error(path, "must be a list of schemas, not empty")
        return [
            self._schema(one, (*path, str(index))) for index, one in enumerate(value)
        ]

    def _schema_map(self, value: Any, path: Path) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise self._error(path, "must be an object of schemas")
        for name in value:
            self._text(name, path)
        return {name: self._schema(one, (*path, name)) for name, one in value.items()}

    def _pattern_map(self, value: Any, path: Path) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise self._error(path, "must be an object of schemas")
        found: dict[str, Any] = {}
        for name, one in value.items():
            pattern = self._pattern(name, path)
            if pattern in found:
                raise self._error(path, "holds two patterns that mean the same")
            found[pattern] = self._schema(one, (*path, name))
            self._wide[(*path[:-1], pattern)] = portable(name, in_json=True, wide=True)
        return found

    def _items(self, value: Any, path: Path) -> Any:
        if not isinstance(value, list):
            return self._schema(value, path)
        if self._draft == _DRAFTS[-1]:
            raise self._error(path, "is a list, which 2020-12 calls prefixItems")
        return self._schema_list(value, path)

    def _type(self, value: Any, path: Path) -> Any:
        names = value if isinstance(value, list) else [value]
        if not names or not all(
            isinstance(name, str) and name in _TYPES for name in names
        ):
            raise self._error(
                path, f"must be one of {', '.join(sorted(_TYPES))}, or a list of them"
            )
        if len(set(names)) < len(names):
            raise self._error(path, "names a type twice")
        return value

    def _enum(self, value: Any, path: Path) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise self._error(path, "must be a list that is not empty")
        if len(value) > MAX_ENUM:
            raise self._error(
                path, f"has {len(value)} values; at most {MAX_ENUM} are taken"
            )
        for one in value:
            self._literal(one, path)
        return value

    def _literal(self, value: Any, path: Path) -> Any:
        """A value that must come out as it is."""
        stack = [(value, 0)]
        while stack:
            one, depth = stack.pop()
            if depth > MAX_DEPTH:
                raise self._error(path, f"nests deeper than {MAX_DEPTH}")
            if isinstance(one, str):
                self._text(one, path)
            elif isinstance(one, Mapping):
                stack.extend((part, depth + 1) for pair in one.items() for part in pair)
            elif isinstance(one, list):
                stack.extend((part, depth + 1) for part in one)
            elif isinstance(one, int | float) and not isinstance(one, bool):
                self._number(one, path)
        return value

    def _text(self, value: str, path: Path) -> None:
        if len(value) > _MAX_LITERAL_CHARS:
            raise self._error(
                path,
                f"holds a text of {len(value)} characters; at most {_MAX_LITERAL_CHARS} are taken",
            )
        if any(
            (char < " " and char not in "\n\r\t\b\f") or char == "\x7f"
            for char in value
        ):
            raise self._error(
                path, "holds a control character, which is never generated"
            )
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise self._error(path, "holds half a surrogate pair")

    def _required(self, value: Any, path: Path) -> list[str]:
        if not isinstance(value, list) or not all(
            isinstance(name, str) for name in value
        ):
            raise self._error(path, "must be a list of names")
        if len(set(value)) < len(value):
            raise self._error(path, "names a property twice")
        for name in value:
            self._text(name, path)
        return value

    def _pattern(self, value: Any, path: Path) -> str:
        if not isinstance(value, str):
            raise self._error(path, "must be text")
        try:
            return portable(value, in_json=True)
        except PatternError as error:
            raise _UnsupportedError(
                path, f"has a pattern that cannot be enforced: {error}"
            ) from error

    def _format(self, value: Any, path: Path) -> str:
        if not isinstance(value, str) or value not in _FORMATS:
            raise _UnsupportedError(
                path,
                f"is not one of the formats that are enforced: {', '.join(sorted(_FORMATS))}",
            )
        return value

    # What keywords mean together.

    def _check_together(self, done: dict[str, Any], path: Path) -> None:
        least = done.get("minProperties", 0)
        if least > 1 and least > len(done.get("required", ())) and not self._lenient:
            raise self._error(
                path,
                "uses 'minProperties' above 1: keys of free choice may come twice; use required",
            )
        if isinstance(done.get("items"), list):
            done["prefixItems"] = done.pop("items")
            done["items"] = done.pop("additionalItems", True)
        if "additionalItems" in done:
            raise self._error(path, "uses 'additionalItems' without a list of items")
        if (
            "patternProperties" in done
            and done.get("additionalProperties") is not False
        ):
            self._widen_patterns(done, path)
        if done.get("format") in _FORMAT_LIMITS:
            done["allOf"] = [*done.get("allOf", ()), _FORMAT_LIMITS[done["format"]]]
        self._narrow_exclusive_limits(done)
        if (
            done.get("multipleOf", 1) % 1
        ):  # validators divide floats here, which must be exact
            done["minimum"] = max(done.get("minimum", -_MAX_FRACTION), -_MAX_FRACTION)
            done["maximum"] = min(done.get("maximum", _MAX_FRACTION), _MAX_FRACTION)

    def _widen_patterns(self, done: dict[str, Any], path: Path) -> None:
        """A key that only some readers find matched must not come as one of the others: it is held to the pattern's schema."""
        patterns = {
            self._wide[(*path, pattern)]: schema
            for pattern, schema in done["patternProperties"].items()
        }
        is_free = done.get("additionalProperties", True) in (True, {})
        if (
            not is_free
            and not self._lenient
            and set(patterns) != set(done["patternProperties"])
        ):
            message = "uses 'patternProperties' with a pattern that readers take differently; set additionalProperties to false"
            raise self._error(path, message)
        done["patternProperties"] = patterns

    def _narrow_exclusive_limits(self, done: dict[str, Any]) -> None:
        """0.99999999999999999999 is below 1 as text and 1 as a float: stay clear of the limit."""
        if done.get("type") == "integer":
            return
        for key, sign in (("exclusiveMinimum", 1), ("exclusiveMaximum", -1)):
            if key not in done:
                continue
            limit = done.pop(key)
            inclusive = "minimum" if sign > 0 else "maximum"
            narrowed = limit + sign * max(abs(limit) * 1e-12, 1e-9)
            tighter = max if sign > 0 else min
            done[inclusive] = (
                tighter(done[inclusive], narrowed) if inclusive in done else narrowed
            )

    # References.

    def _ref(self, value: Any, path: Path) -> str:
        if not isinstance(value, str) or not (value == "#" or value.startswith("#/")):
            raise self._error(
                path,
                "must be '#' or begin with '#/': nothing outside the schema is read",
            )
        target = tuple(
            unquote(part).replace("~1", "/").replace("~0", "~")
            for part in value.split("/")[1:]
        )
        self._refs.append((path[:-1], value, target))
        return value

    def _in_place(self, schema: Mapping[str, Any], path: Path) -> Iterator[Path]:
        """Schemas that judge the same value as the one at `path`, without references."""
        for key in ("allOf", "anyOf", "oneOf"):
            yield from (
                (*path, key, str(index)) for index in range(len(schema.get(key, ())))
            )

    def _check_refs(self) -> None:
        edges: dict[Path, list[Path]] = {
            path: list(near) for path, near in self._places.items()
        }
        for path, name, target in self._refs:
            if target not in self._places:
                raise self._error(
                    path, f"refers to {name[:60]!r}, where there is no schema"
                )
            edges[path].append(target)
        state: dict[
            Path, bool
        ] = {}  # False while its paths are followed, True when they are done
        for start, first in edges.items():
            stack = [(start, iter(first))] if start not in state else []
            state.setdefault(start, False)
            while stack:
                place, rest = stack[-1]
                following = next(rest, None)
                if following is None:
                    state[place] = True
                    stack.pop()
                elif following not in state:
                    state[following] = False
                    stack.append((following, iter(edges[following])))
                elif not state[following]:
                    raise self._error(
                        place, "refers to itself without a value in between"
                    )
