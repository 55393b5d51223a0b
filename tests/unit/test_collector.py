"""What the suite holds in memory is not looked at by each collection of garbage."""

from __future__ import annotations

import gc


def test_what_was_there_before_a_files_tests_is_not_looked_at() -> None:
    assert gc.get_freeze_count() > len(gc.get_objects())
