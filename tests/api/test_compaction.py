"""POST /v1/responses/compact: a summary that the server takes back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.api import Running, served
from tests.support.wire import open_scripted

if TYPE_CHECKING:  # a second, in each worker that collects
    from openai import OpenAI

PATH = "/v1/responses"
HELLO = "Hello by the sea."  # what the engine says to every question


@pytest.fixture(scope="module")
def api(tiny: Path) -> Iterator[Running]:
    with served({"tiny": tiny}, opener=open_scripted) as running:
        yield running


@pytest.fixture
def client(api: Running) -> Iterator[OpenAI]:
    from openai import OpenAI

    address = f"http://127.0.0.1:{api.port}/v1"
    with OpenAI(base_url=address, api_key="none", max_retries=0) as made:
        yield made


def count(client: OpenAI, given: Any) -> int:
    counted = client.responses.input_tokens.count(model="tiny", input=given)
    return counted.input_tokens


def test_the_users_messages_stay_and_a_summary_follows(client: OpenAI) -> None:
    first = client.responses.create(model="tiny", input="One. " * 50)
    compacted = client.responses.compact(
        model="tiny", input="Two.", previous_response_id=first.id, instructions="Brief."
    )
    assert compacted.object == "response.compaction"
    assert [item.type for item in compacted.output] == [
        "message",
        "message",
        "compaction",
    ]
    assert compacted.output[1].content[0].text == "Two."
    assert compacted.usage.output_tokens > 0

    output = compacted.to_dict(warnings=False)["output"]
    question = {"role": "user", "content": "Three."}
    going_on = client.responses.create(model="tiny", input=[*output, question])
    assert going_on.output_text == HELLO
    summary = f"Summary of the conversation so far:\n{HELLO}"
    spelled = [*output[:2], {"role": "assistant", "content": summary}, question]
    assert going_on.usage.input_tokens == count(client, spelled)


def test_it_is_kept_under_its_ids(client: OpenAI) -> None:
    compacted = client.responses.compact(model="tiny", input="One.")
    question = {"role": "user", "content": "Two."}
    references: Any = []
    for item in compacted.output:
        references.append({"type": "item_reference", "id": item.id})
    referred = client.responses.create(model="tiny", input=[*references, question])
    going_on = client.responses.create(
        model="tiny", input=[question], previous_response_id=compacted.id
    )
    assert referred.usage.input_tokens == going_on.usage.input_tokens


@pytest.mark.parametrize(
    "content", [None, "", "gAAAAB", "rvllm-1:***", "rvllm-1:/w==", "rvllm-2:eA=="]
)
def test_a_summary_of_another_server_is_refused(
    api: Running, content: str | None
) -> None:
    item = {"type": "compaction", "encrypted_content": content}
    answer = api.post({"model": "tiny", "input": [item]}, PATH)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "input[0].encrypted_content"
    assert "send the items that it stands for" in error["message"]


def test_nothing_cannot_be_made_short(api: Running) -> None:
    answer = api.post({"model": "tiny"}, f"{PATH}/compact")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "input"
