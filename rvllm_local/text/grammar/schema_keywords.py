"""Which keywords JSON Schema has, what they hold, and why some are not enforced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DRAFT_2020 = "draft/2020-12/schema"
DRAFT_4 = "draft-04/schema"
_DRAFTS = (
    DRAFT_4,
    "draft-06/schema",
    "draft-07/schema",
    "draft/2019-09/schema",
    DRAFT_2020,
)
_TEXTS = ("title", "description", "$comment", "$schema", "$id", "id", "$anchor")
_SWITCHES = ("deprecated", "readOnly", "writeOnly")
# Keywords that demand nothing, and the type of what they hold.
ANNOTATIONS: Mapping[str, type] = {
    **dict.fromkeys(_TEXTS, str),
    **dict.fromkeys(_SWITCHES, bool),
    "examples": list,
    "default": object,
    "discriminator": object,  # OpenAPI's: the schemas of the union say it, too
}
REASONS: Mapping[str, str] = {
    "uniqueItems": "unique items cannot be enforced",
    "not": "negation cannot be enforced",
    "unevaluatedProperties": "use additionalProperties",
    "unevaluatedItems": "use items",
    "nullable": "use a type list with null",
    "$dynamicRef": "use $ref",
    "$recursiveRef": "use $ref",
}
# Keywords that assert something and are not enforced; all others are annotations.
_UNENFORCED = frozenset(
    {
        *REASONS, "if", "then", "else", "contains", "minContains", "maxContains",
        "propertyNames", "dependencies", "dependentRequired", "dependentSchemas",
        "contentSchema",
    }
)  # fmt: skip


def is_known_keyword(key: str) -> bool:
    """True for a keyword that asserts something in a draft."""
    return key in _UNENFORCED


def known_draft(name: Any) -> str | None:
    """The draft that a `$schema` names, the newest for None; None for an unknown one."""
    if name is None:
        return DRAFT_2020
    if isinstance(name, str):
        address = name.rstrip("#").split("://")[-1]
        for draft in _DRAFTS:
            if address == f"json-schema.org/{draft}":
                return draft
    return None


def keywords_of(
    schema: Mapping[str, Any], draft: str, lenient: bool
) -> list[tuple[str, Any]]:
    """The keywords that count, in the form of the newer drafts.

    Drafts 4 to 7 ignore what stands beside a `$ref`. Draft 4 has switches for exclusive
    bounds, which `lenient` takes in every draft.
    """
    if "$ref" in schema and draft in _DRAFTS[:3]:
        kept = ("$ref", "$defs", "definitions")
        return [(key, schema[key]) for key in kept if key in schema]
    pairs = dict(schema)
    if not lenient and draft != DRAFT_4:
        return list(pairs.items())
    for name in ("Minimum", "Maximum"):
        exclusive, plain = f"exclusive{name}", name.lower()
        if isinstance(pairs.get(exclusive), bool):
            is_exclusive = pairs.pop(exclusive)
            if is_exclusive and plain in pairs:
                pairs[exclusive] = pairs.pop(plain)
    return list(pairs.items())
