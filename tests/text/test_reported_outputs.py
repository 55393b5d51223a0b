"""What users reported to other servers is read, whole and in pieces."""

from __future__ import annotations

import pytest

from rvllm_local.conversation.output import OutputParser
from tests.text.outputs import joined, run
from tests.text.reported_outputs import REPORTED, TOOLS, Reported

NAMES = [f"{number} {case.source}" for number, case in enumerate(REPORTED)]


@pytest.mark.parametrize("case", REPORTED, ids=NAMES)
def test_a_reported_output_is_read(case: Reported) -> None:
    for size in (len(case.text), 7, 1):
        starts = range(0, len(case.text), size)
        parts = [case.text[start : start + size] for start in starts]
        read = joined(run(OutputParser.for_style(case.style, tools=TOOLS), parts))
        assert read.content == case.content
        assert read.reasoning == case.thought
        assert read.calls == case.calls
