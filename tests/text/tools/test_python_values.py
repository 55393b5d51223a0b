"""Values in calls that are written as Python: what can be told, and what cannot."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rvllm_local.text.tools.python_calls import python_calls
from rvllm_local.text.tools.reader import MalformedCallError


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("{'b', 'a', 'b'}", ["b", "a", "b"]),
        ("(1, 2)", [1, 2]),
        ("-3.5", -3.5),
        ("2 * 3 + 1", 7),
        ("7 / 2", 3.5),
        ("'a' + 'b'", "ab"),
        ("'a' 'b'", "ab"),
        ("f'plain'", "plain"),
        ("true", True),
        ("[None, null]", [None, None]),
        ("dict(street='x', number=4)", {"street": "x", "number": 4}),
        ("Address(street='x', from='y')", {"street": "x", "from": "y"}),
        ("models.Point(x=Point(y=1))", {"x": {"y": 1}}),
        ("list((1, 2))", [1, 2]),
        ("set()", []),
        ("str(5)", "5"),
        ("int('5')", 5),
    ],
)
def test_a_value_is_what_it_says(code: str, value: Any) -> None:
    ((name, arguments),) = python_calls(f"look(v={code})")
    assert (name, json.loads(arguments)) == ("look", {"v": value})


@pytest.mark.parametrize(
    "code",
    [
        "find(city='Oslo')",
        "default_api.find(city='Oslo')",
        "open('/etc/passwd').read()",
        "datetime.date(2024, 1, 5)",
        "Point(1, 2)",
        "Point(**x)",
        "x",
        "x.y",
        "'a' * 1000000000",
        "9 ** 9",
        "1 / 0",
        "1e15 * 1e300",
        "f'{x}'",
        "[i for i in y]",
        "b'x'",
        "3j",
        "{1: 2}",
        "lambda: 1",
        "int('x')",
    ],
)
def test_nothing_is_run_and_what_is_not_known_is_refused(code: str) -> None:
    with pytest.raises(MalformedCallError):
        python_calls(f"look(v={code})")
