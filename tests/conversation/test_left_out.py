"""What a schema asks for and is not enforced is named in a header, whole and streamed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rvllm_local import LLM, SamplingParams
from tests.conversation.test_two_faces import ScriptedClient
from tests.support.api import CHAT, Running, served
from tests.support.served import save_thinking

SCHEMA = {"type": "array", "uniqueItems": True}
FORMAT = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}
HEADER = "x-rvllm-left-out"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = save_thinking(tmp_path_factory.mktemp("models") / "thinker")
    opener = lambda files, options: ScriptedClient()  # noqa: E731
    with served({"thinker": folder}, opener=opener) as running:
        yield running


def test_a_completion_names_it(tmp_path: Path) -> None:
    with LLM(save_thinking(tmp_path / "thinker"), kv_memory="6MB") as llm:
        params = SamplingParams(max_tokens=4, temperature=0)
        message = {"role": "user", "content": "x"}
        (answer,) = llm.chat([message], params, response_format=FORMAT)
        assert "# uses 'uniqueItems'" in answer.left_out[0]
        (answer,) = llm.chat([message], params)
        assert answer.left_out == ()


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"response_format": FORMAT}, "# uses 'uniqueItems'"),
        ({"tools": [TOOL], "tool_choice": "required"}, "tool f: # uses 'not'"),
    ],
)
def test_the_header_names_it(
    running: Running, more: dict[str, Any], named: str, is_streamed: bool
) -> None:
    answer = running.post({**CHAT, "stream": is_streamed, **more})
    assert answer.status_code == 200
    assert named in answer.headers[HEADER]


def test_without_a_part_left_out_there_is_no_header(running: Running) -> None:
    assert HEADER not in running.post(CHAT).headers
