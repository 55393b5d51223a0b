"""JSON Schema's own test suite, without `strict`: drafts 7 and 2020-12, what is required.

It comes with the sources of the jsonschema library. Where no package index can be
reached, this is skipped.
"""

from __future__ import annotations

import json
import random
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema
import platformdirs
import pytest
from jsonschema.validators import validator_for

from rvllm_local.errors import GrammarError, ParameterError
from rvllm_local.text.grammar.formats import (
    grammar_for_format,
    split_left_out,
)
from rvllm_local.text.grammar.matcher import GrammarCompiler, Matcher
from rvllm_local.text.tokenizer import Tokenizer
from tests.support.pypi import download
from tests.text.schema_corpus import allowed_tokens, sample

PACKAGE = "jsonschema==4.26.0"
CACHE = platformdirs.user_cache_path("rvllm") / "tests" / "schema-suite"
DRAFT_7 = "http://json-schema.org/draft-07/schema#"
Group = Mapping[str, Any]


@pytest.fixture(scope="module")
def archive() -> Iterator[tarfile.TarFile]:
    """The library's sources."""
    if not list(CACHE.glob("*.tar.gz")):
        download(CACHE, "--no-binary", "jsonschema", PACKAGE)
    (path,) = CACHE.glob("*.tar.gz")
    with tarfile.open(path) as opened:
        yield opened


def groups(archive: tarfile.TarFile, draft: str) -> Iterator[Group]:
    """Schemas with instances, those that the draft requires."""
    for member in sorted(archive.getmembers(), key=lambda member: member.name):
        folder, _, name = member.name.rpartition("/")
        if not folder.endswith(f"/json/tests/{draft}") or not name.endswith(".json"):
            continue
        file = archive.extractfile(member)
        assert file is not None
        for group in json.load(file):
            if draft == "draft7" and isinstance(group["schema"], dict):
                group["schema"] = {"$schema": DRAFT_7, **group["schema"]}
            group["description"] = f"{name}: {group['description']}"
            yield group


def accepts(matcher: Matcher, tokenizer: Tokenizer, instance: Any) -> bool:
    """True if the grammar lets the instance be written, compactly."""
    for token in tokenizer.encode(json.dumps(instance, separators=(",", ":"))):
        if token not in allowed_tokens(matcher):
            return False
        matcher.advance(token)
    return matcher.is_accepting


def is_satisfiable(group: Group) -> bool:
    """True if one of the group's own instances satisfies its schema."""
    return any(test["valid"] for test in group["tests"])


@pytest.mark.parametrize("draft", ["draft7", "draft2020-12"])
def test_what_is_enforced_is_valid_and_the_rest_is_named(
    archive: tarfile.TarFile,
    draft: str,
    compiler: GrammarCompiler,
    tokenizer: Tokenizer,
) -> None:
    num_whole = num_documents = num_forbidden = 0
    refused = []
    for group in groups(archive, draft):
        title, schema = group["description"], group["schema"]
        form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
        try:
            grammar, left_out = split_left_out(grammar_for_format(form))
            matcher = compiler.compile(grammar or "")
        except (ParameterError, GrammarError) as error:
            assert not is_satisfiable(group), f"{title}: {error}"
            refused.append(title)
            continue
        if left_out:
            assert all(part.startswith("#") and " " in part for part in left_out)
            continue
        num_whole += 1
        for test in group["tests"]:
            if not test["valid"]:
                num_forbidden += 1
                taken = accepts(matcher.copy(), tokenizer, test["data"])
                assert not taken, f"{title}: {test['description']}"
        text = sample(matcher.copy(), tokenizer, random.Random(1), max_tokens=120)
        if text is not None:
            num_documents += 1
            validator = validator_for(schema, jsonschema.Draft202012Validator)(schema)
            problem = next(validator.iter_errors(json.loads(text)), None)
            assert problem is None, f"{title}: {text}"
    assert num_whole > 100
    assert num_documents > 100
    assert num_forbidden > 200
    assert len(refused) < 10
