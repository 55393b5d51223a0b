"""`make audit` tells of all packages, and ends with 0 only where all is well."""

from __future__ import annotations

from typing import Any

import pytest

from scripts.audit import told

SOUND = {"name": "a", "version": "1", "vulns": []}
ADVISORY = {"id": "CVE-1", "fix_versions": ["2.1"]}
BAD = {"name": "b", "version": "2", "vulns": [ADVISORY]}
SKIPPED = {"name": "c", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("packages", "status", "words"),
    [
        ([SOUND], 0, "0 advisories for 1 of 1 packages"),
        ([SOUND, BAD, SKIPPED], 1, "b 2: CVE-1, mended in 2.1"),
        ([SOUND, BAD, SKIPPED], 1, "not looked up: c"),
        ([SOUND, SKIPPED], 2, "0 advisories for 1 of 2 packages"),
        ([SKIPPED], 2, "an audit needs the network"),
        ([], 2, "an audit needs the network"),
    ],
)
def test_what_is_told(packages: list[Any], status: int, words: str) -> None:
    lines, end = told(packages)
    assert end == status
    assert words in "\n".join(lines)
