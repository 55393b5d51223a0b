"""Brings a JSON schema into the form that is compiled, and says what of it is left out.

It knows JSON Schema as the drafts 4 to 2020-12 have it, and what llguidance does with it.
A strict schema is enforced to the letter, or refused by keyword and place. Of any other,
the smallest part that cannot be enforced is left out and named. It makes no grammar.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rvllm_local.errors import ParameterError
from rvllm_local.text.grammar.blank_budget import BLANKS
from rvllm_local.text.grammar.regex import PatternError, are_apart, portable
from rvllm_local.text.grammar.schema_errors import (
    MalformedSchemaError,
    Path,
    SchemaFault,
    UnsupportedSchemaError,
    shown_place,
)
from rvllm_local.text.grammar.schema_formats import FORMAT_LIMITS, FORMATS
from rvllm_local.text.grammar.schema_keywords import (
    ANNOTATIONS,
    DRAFT_2020,
    REASONS,
    is_known_keyword,
    keywords_of,
    known_draft,
)
from rvllm_local.text.grammar.schema_refs import (
    Reference,
    circular_reference,
    pointer_to,
    renamed_target,
    schemas_in_place,
    target_of,
)
from rvllm_local.text.grammar.schema_unions import are_exclusive
from rvllm_local.text.grammar.schema_values import (
    MAX_DEPTH,
    check_plain_json,
    check_text,
    checked_count,
    checked_enum,
    checked_limit,
    checked_literal,
    checked_multiple,
    checked_names,
    checked_types,
    is_binary_fraction,
    narrow_exclusive_limits,
)

MAX_SCHEMAS = 5000  # schemas within one schema
_MAX_LEFT_OUT = 100  # places that are named
# Blank space is bounded, or a weak model writes it for ever. Without \u there is one
# spelling of every string, which keeps a key that is spelled otherwise from escaping its
# schema, and halves of surrogate pairs out.
_OPTIONS = {**BLANKS, "json_allowed_escapes": 'nrbtf\\"'}
_MAX_FRACTION = 10**12
_DROPPED = object()  # what a rule returns for a keyword that demands nothing


@dataclass(frozen=True, slots=True)
class EnforcedSchema:
    """A schema fit to be compiled, and the places and keywords that were left out."""

    schema: dict[str, Any]
    left_out: tuple[str, ...] = ()


def enforceable(
    schema: Any,
    parameter: str = "response_format",
    *,
    lenient: bool = False,
) -> dict[str, Any]:
    """The schema of `enforced`, alone."""
    return enforced(schema, parameter, lenient=lenient).schema


def enforced(
    schema: Any,
    parameter: str = "response_format",
    *,
    lenient: bool = False,
) -> EnforcedSchema:
    """The schema to compile.

    Raises `ParameterError` for what is no schema, and for what cannot be enforced, with
    its place. `lenient` leaves the latter out instead.
    """
    if schema is True:
        schema = {}
    if schema is False:
        raise ParameterError(parameter, "the schema is false, which nothing satisfies")
    walk = _Walk(schema, lenient)
    try:
        done = walk.run()
    except SchemaFault as fault:
        raise ParameterError(
            parameter, f"the schema cannot be enforced: {fault.place} {fault.message}"
        ) from fault
    options: dict[str, Any] = dict(_OPTIONS)
    if lenient:
        options["lenient"] = True
    left_out = tuple(dict.fromkeys(walk.left_out))
    return EnforcedSchema({"x-guidance": options, **done}, left_out[:_MAX_LEFT_OUT])


class _Walk:
    """One walk over a schema: every keyword is understood, refused or left out."""

    def __init__(self, schema: Any, lenient: bool) -> None:
        self._root = schema
        self._lenient = lenient
        self.left_out: list[str] = []
        # Every schema: what it becomes, and the schemas that judge the same value.
        self._done: dict[Path, Any] = {}
        self._places: dict[Path, tuple[Path, ...]] = {}
        self._references: list[Reference] = []
        self._rules = self._keyword_rules()
        # What any reader matches, by the place of an object and its pattern.
        self._wide: dict[Path, str] = {}
        self._draft = DRAFT_2020

    def run(self) -> dict[str, Any]:
        if not isinstance(self._root, Mapping):
            name = type(self._root).__name__
            raise MalformedSchemaError(
                (), f"must be an object or a boolean, not {name}"
            )
        check_plain_json(self._root)
        self._draft = self._draft_of(self._root.get("$schema"))
        done: dict[str, Any] = self._schema(self._root, ())
        self._check_references()
        return done

    def _draft_of(self, name: Any) -> str:
        draft = known_draft(name)
        if draft is not None:
            return draft
        if self._lenient:
            return DRAFT_2020
        raise UnsupportedSchemaError(
            (),
            "has a $schema that is not supported; use draft 4, 6, 7, 2019-09 or 2020-12",
        )

    # Schemas and keywords.

    def _schema(self, schema: Any, path: Path) -> Any:
        self._places[path] = ()
        try:
            self._check_room(path)
        except UnsupportedSchemaError as fault:
            self._leave_out(fault)
            return True
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, Mapping):
            raise MalformedSchemaError(path, "must be an object or a boolean")
        done: dict[str, Any] = {}
        for key, value in keywords_of(schema, self._draft, self._lenient):
            try:
                kept = self._keyword(key, value, path)
            except UnsupportedSchemaError as fault:
                self._leave_out(fault)
                continue
            if kept is not _DROPPED:
                done[key] = kept
        self._places[path] = tuple(schemas_in_place(done, path))
        self._done[path] = done
        self._check_together(done, path)
        return done

    def _check_room(self, path: Path) -> None:
        if len(path) > 2 * MAX_DEPTH:
            raise UnsupportedSchemaError(path, f"nests deeper than {MAX_DEPTH}")
        if len(self._places) > MAX_SCHEMAS:
            raise UnsupportedSchemaError((), f"holds more than {MAX_SCHEMAS} schemas")

    def _note(self, path: Path, message: str) -> None:
        """Name a part that is enforced in part."""
        if self._lenient:
            self.left_out.append(f"{shown_place(path)} {message}")

    def _leave_out(self, fault: UnsupportedSchemaError) -> None:
        """Name the part that is left out; refuse it in a strict schema."""
        if not self._lenient:
            raise fault
        self.left_out.append(f"{fault.place} {fault.message}")

    def _keyword(self, key: str, value: Any, path: Path) -> Any:
        if key in ANNOTATIONS:
            if not isinstance(value, ANNOTATIONS[key]) and not self._lenient:
                raise MalformedSchemaError(
                    path, f"has a {key} that is of the wrong type"
                )
            if key == "$id" and path:
                raise UnsupportedSchemaError(
                    path, "has an $id, which only the outermost schema may have"
                )
            return _DROPPED
        rule = self._rules.get(key)
        if rule is None and self._lenient and not is_known_keyword(key):
            return _DROPPED  # JSON Schema's rule: it is an annotation
        if rule is None or (key == "uniqueItems" and value is not False):
            reason = REASONS.get(key, "the keyword is not supported")
            raise UnsupportedSchemaError(path, f"uses {key[:60]!r}: {reason}")
        return rule(value, (*path, key))

    def _keyword_rules(self) -> dict[str, Callable[[Any, Path], Any]]:
        rules: dict[str, Callable[[Any, Path], Any]] = {
            "items": self._items,
            "patternProperties": self._pattern_map,
            "additionalProperties": self._schema,
            "additionalItems": self._schema,
            "type": checked_types,
            "enum": checked_enum,
            "const": checked_literal,
            "required": checked_names,
            "pattern": self._pattern,
            "format": self._format,
            "multipleOf": self._multiple,
            "uniqueItems": lambda value, path: _DROPPED,
            "$ref": self._reference,
        }
        for kind in ("Length", "Items", "Properties"):
            rules |= dict.fromkeys((f"min{kind}", f"max{kind}"), checked_count)
        limits = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
        rules |= dict.fromkeys(limits, checked_limit)
        lists = ("allOf", "anyOf", "oneOf", "prefixItems")
        rules |= dict.fromkeys(lists, self._schema_list)
        maps = ("properties", "$defs", "definitions")
        return rules | dict.fromkeys(maps, self._schema_map)

    def _multiple(self, value: Any, path: Path) -> float:
        number = checked_multiple(value, path, takes_decimals=self._lenient)
        if not is_binary_fraction(number):
            self._note(path, "is enforced in decimals; readers of floats may differ")
        return number

    def _schema_list(self, value: Any, path: Path) -> list[Any]:
        if path[-1] == "prefixItems" and self._draft != DRAFT_2020:
            raise UnsupportedSchemaError(
                path, "does not belong to this $schema; use items"
            )
        if not isinstance(value, list) or not value:
            raise MalformedSchemaError(path, "must be a list of schemas, not empty")
        if path[-1] == "oneOf" and not are_exclusive(value, self._root):
            self._note(path, "is enforced as anyOf: two alternatives may fit")
        parts = []
        for index, part in enumerate(value):
            parts.append(self._schema(part, (*path, str(index))))
        return parts

    def _schema_map(self, value: Any, path: Path) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise MalformedSchemaError(path, "must be an object of schemas")
        done = {}
        for name, schema in value.items():
            try:
                check_text(name, path)
            except UnsupportedSchemaError as fault:
                self._leave_out(fault)
                continue
            done[name] = self._schema(schema, (*path, name))
        return done

    def _pattern_map(self, value: Any, path: Path) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise MalformedSchemaError(path, "must be an object of schemas")
        done: dict[str, Any] = {}
        for name, schema in value.items():
            pattern = self._pattern(name, path)
            if pattern in done:
                raise UnsupportedSchemaError(
                    path, "holds two patterns that mean the same"
                )
            done[pattern] = self._schema(schema, (*path, name))
            wide = portable(name, in_json=True, wide=True)
            self._wide[(*path[:-1], pattern)] = wide
        if self._lenient and not are_apart(list(done)):
            fault = "holds patterns that may match the same name; the first is enforced"
            self._leave_out(UnsupportedSchemaError(path, fault))
            first = next(iter(done))
            return {first: done[first]}
        return done

    def _items(self, value: Any, path: Path) -> Any:
        if not isinstance(value, list):
            return self._schema(value, path)
        if self._draft == DRAFT_2020 and not self._lenient:
            raise MalformedSchemaError(
                path, "is a list, which 2020-12 calls prefixItems"
            )
        if not value:
            return _DROPPED
        return self._schema_list(value, path)

    def _pattern(self, value: Any, path: Path) -> str:
        if not isinstance(value, str):
            raise MalformedSchemaError(path, "must be text")
        try:
            return portable(value, in_json=True)
        except PatternError as error:
            raise UnsupportedSchemaError(
                path, f"has a pattern that cannot be enforced: {error}"
            ) from error

    def _format(self, value: Any, path: Path) -> str:
        if not isinstance(value, str) or value not in FORMATS:
            formats = ", ".join(sorted(FORMATS))
            raise UnsupportedSchemaError(
                path, f"is not one of the formats that are enforced: {formats}"
            )
        return value

    # What keywords mean together.

    def _check_together(self, done: dict[str, Any], path: Path) -> None:
        least = done.get("minProperties", 0)
        num_required = len(done.get("required", ()))
        if least > 1 and least > num_required and not self._lenient:
            raise UnsupportedSchemaError(
                path,
                "uses 'minProperties' above 1: keys of free choice may come twice; "
                "use required",
            )
        if isinstance(done.get("items"), list):
            done["prefixItems"] = done.pop("items")
            done["items"] = done.pop("additionalItems", True)
        done.pop("additionalItems", None)  # it has no effect beside one schema
        is_open = done.get("additionalProperties") is not False
        if "patternProperties" in done and is_open:
            self._widen_patterns(done, path)
        limits = FORMAT_LIMITS.get(done.get("format", ""))
        if limits is not None:
            done["allOf"] = [*done.get("allOf", ()), limits]
        narrow_exclusive_limits(done)
        if done.get("multipleOf", 1) % 1:
            # Validators divide floats, which must be exact.
            minimum = done.get("minimum", -_MAX_FRACTION)
            maximum = done.get("maximum", _MAX_FRACTION)
            done["minimum"] = max(minimum, -_MAX_FRACTION)
            done["maximum"] = min(maximum, _MAX_FRACTION)

    def _widen_patterns(self, done: dict[str, Any], path: Path) -> None:
        """A key that only some readers find matched is held to the pattern's schema."""
        patterns = {}
        for pattern, schema in done["patternProperties"].items():
            patterns[self._wide[(*path, pattern)]] = schema
        is_free = done.get("additionalProperties", True) in (True, {})
        is_same = patterns.keys() == done["patternProperties"].keys()
        if not is_free and not is_same and not self._lenient:
            raise UnsupportedSchemaError(
                path,
                "uses 'patternProperties' with a pattern that readers take differently; "
                "set additionalProperties to false",
            )
        done["patternProperties"] = patterns

    # References.

    def _reference(self, value: Any, path: Path) -> str:
        if not isinstance(value, str):
            raise MalformedSchemaError(path, "must be text")
        if value != "#" and not value.startswith("#/"):
            raise UnsupportedSchemaError(
                path,
                "must be '#' or begin with '#/': nothing outside the schema is read",
            )
        self._references.append(Reference(path[:-1], value, target_of(value)))
        return value

    def _check_references(self) -> None:
        """Refuse or drop references that lead nowhere, or back without a value."""
        for reference in list(self._references):
            if reference.target not in self._places:
                shown = repr(reference.name[:60])
                self._drop(reference, f"refers to {shown}, where there is no schema")
        for reference in self._references:
            path = renamed_target(self._root, reference.target)
            if path != reference.target:
                self._done[reference.path]["$ref"] = pointer_to(path)
        while True:
            circle = circular_reference(self._places, self._references)
            if circle is None:
                return
            self._drop(circle, "refers to itself without a value in between")

    def _drop(self, reference: Reference, message: str) -> None:
        self._leave_out(UnsupportedSchemaError(reference.path, message))
        self._references.remove(reference)
        self._done[reference.path].pop("$ref", None)
