"""Names and arguments in other forms mean a tool, or none."""

from __future__ import annotations

import pytest

from rvllm_local.text.tools.signatures import (
    offered_name,
    signatures_of,
    tool_by_keys,
    unwrapped,
)
from tests.text.outputs import TOOLS

NAMES = frozenset({"bash", "read_file", "sha256", "resolve-library-id"})


@pytest.mark.parametrize(
    ("name", "tool"),
    [
        ("bash", "bash"),
        ("functions.bash", "bash"),
        ("functions_bash_2", "bash"),
        ("functions.sha256", "sha256"),
        ("functions.sha256:1", "sha256"),
        ("functions_read_file_3", "read_file"),
        ("Read-File", "read_file"),
        ("resolve_library_id", "resolve-library-id"),
        ("bash2", None),
        ("book", None),
    ],
)
def test_a_name_means_a_tool(name: str, tool: str | None) -> None:
    assert offered_name(name, NAMES) == tool


def test_two_tools_that_are_spelled_alike_are_not_guessed() -> None:
    assert offered_name("read.file", frozenset({"read_file", "read-file"})) is None


def test_arguments_alone_name_the_only_tool_that_takes_them() -> None:
    signatures = signatures_of(TOOLS)
    assert tool_by_keys({"city": "Oslo"}, signatures) == "look"
    assert tool_by_keys({"days": 3}, signatures) is None
    assert tool_by_keys({"city": "Oslo", "age": 3}, signatures) is None
    assert tool_by_keys({}, signatures) is None


def test_a_key_too_many_is_taken_off() -> None:
    look = signatures_of(TOOLS)["look"]
    for wrapped in ({"city": "Oslo"}, '{"city": "Oslo"}', "Oslo"):
        assert unwrapped({"arguments": wrapped}, look) == {"city": "Oslo"}
    assert unwrapped({"arguments": {"age": 3}}, look) == {"arguments": {"age": 3}}
    assert unwrapped({"city": "Oslo"}, look) == {"city": "Oslo"}
