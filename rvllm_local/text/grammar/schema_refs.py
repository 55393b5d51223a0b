"""References within a schema: which lead nowhere, and which lead back without a value."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from rvllm_local.text.grammar.schema_errors import Path

Edge = tuple[Path, Path]  # from a schema to one that judges the same value


@dataclass(frozen=True, slots=True)
class Reference:
    """A `$ref` of the schema at `path`, written as `name`, to the schema at `target`."""

    path: Path
    name: str
    target: Path


def target_of(name: str) -> Path:
    """The path that a reference such as `#/$defs/a` leads to."""
    parts = []
    for escaped in name.split("/")[1:]:
        part = unquote(escaped)
        part = part.replace("~1", "/").replace("~0", "~")
        parts.append(part)
    return tuple(parts)


def pointer_to(path: Path) -> str:
    """The reference to a path."""
    parts = ["#"]
    for part in path:
        escaped = part.replace("~", "~0").replace("/", "~1")
        parts.append(quote(escaped))
    return "/".join(parts)


def renamed_target(root: Any, path: Path) -> Path:
    """Where a schema of the older drafts stands once lists of items are prefixItems."""
    parts = []
    node = root
    for part in path:
        name = part
        if isinstance(node, Mapping):
            has_list = isinstance(node.get("items"), list)
            if has_list and part == "items":
                name = "prefixItems"
            elif has_list and part == "additionalItems":
                name = "items"
            node = node.get(part)
        elif isinstance(node, list) and part.isdecimal():
            index = int(part)
            if index < len(node):
                node = node[index]
        parts.append(name)
    return tuple(parts)


def schemas_in_place(
    schema: Mapping[str, Any],
    path: Path,
) -> Iterator[Path]:
    """Schemas that judge the same value as the one at `path`, references aside."""
    for key in ("allOf", "anyOf", "oneOf"):
        parts = schema.get(key)
        if not isinstance(parts, list):
            continue
        for index in range(len(parts)):
            yield (*path, key, str(index))


def circular_reference(
    places: Mapping[Path, Iterable[Path]],
    references: Iterable[Reference],
) -> Reference | None:
    """A reference by which a schema judges a value through itself; None if all end.

    `places` are all schemas, and those that judge the same value.
    """
    edges: dict[Path, list[Path]] = {}
    for path, near in places.items():
        edges[path] = list(near)
    by_edge: dict[Edge, Reference] = {}
    for reference in references:
        edges[reference.path].append(reference.target)
        by_edge[reference.path, reference.target] = reference
    is_done: dict[Path, bool] = {}  # False while its paths are followed
    for start, neighbours in edges.items():
        if start in is_done:
            continue
        is_done[start] = False
        trail = [(start, iter(neighbours))]
        while trail:
            path, rest = trail[-1]
            following = next(rest, None)
            if following is None:
                is_done[path] = True
                trail.pop()
            elif following not in is_done:
                is_done[following] = False
                onward = edges.get(following, ())
                trail.append((following, iter(onward)))
            elif not is_done[following]:
                steps = [visited for visited, _ in trail]
                steps.append(following)
                return _reference_among(steps, by_edge)
    return None


def _reference_among(
    steps: list[Path],
    by_edge: Mapping[Edge, Reference],
) -> Reference:
    """The last reference of a circle; without one, the schema would hold itself."""
    edges = list(itertools.pairwise(steps))
    edges.reverse()
    for edge in edges:
        if edge in by_edge:
            return by_edge[edge]
    raise AssertionError("a schema holds itself")
