"""A tool loop as coding agents run it: every call must parse, and every turn after the first must find its prefix.

python -m benchmarks.agent_loop [--clients 8] [--turns 40] [--model smollm2-135m]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from jsonschema import validate

from tests.support.served import rvllm_serve

BLOCK = 32
TOOLS = {
    "read_file": {"path": {"type": "string", "pattern": "^[a-z]{1,8}\\.(py|md)$"}},
    "search": {"text": {"type": "string", "minLength": 1, "maxLength": 12}, "most": {"type": "integer", "minimum": 1, "maximum": 9}},
    "run_tests": {"verbose": {"type": "boolean"}},
}  # fmt: skip
RESULTS = (
    "ok",
    "3 passed",
    "def main() -> None: ...",
    "nothing found; try another text",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--model", default="smollm2-135m")
    options = parser.parse_args()
    with rvllm_serve([options.model], "--kv-memory", "2GB") as (base, _):
        found = run(base, options.clients, options.turns)
    print(json.dumps(found, indent=1))
    sys.exit(bool(found["misses"] or found["unparsed"]))


def run(
    base: str, clients: int, turns: int, model: str = "default", **more: Any
) -> dict[str, Any]:
    """Figures of one loop: calls made, calls that did not parse, turns whose prefix was not found, times in seconds."""
    began = time.monotonic()
    with ThreadPoolExecutor(clients) as threads:
        rows = list(
            threads.map(
                lambda number: _client(base, number, turns, model, more), range(clients)
            )
        )
    turns_s = [seconds for row in rows for seconds in row["turns_s"]]
    return {
        "clients": clients, "turns": turns, "calls": sum(row["calls"] for row in rows),
        "unparsed": sum(row["unparsed"] for row in rows), "misses": sum(row["misses"] for row in rows),
        "cached_share": statistics.mean(share for row in rows for share in row["cached"]),
        "turn_p50_s": statistics.median(turns_s), "turn_max_s": max(turns_s), "wall_s": time.monotonic() - began,
    }  # fmt: skip


def schema(name: str) -> dict[str, Any]:
    properties = TOOLS[name]
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _client(
    base: str, number: int, turns: int, model: str, more: dict[str, Any]
) -> dict[str, Any]:
    tools = [
        {"type": "function", "function": {"name": name, "parameters": schema(name)}}
        for name in TOOLS
    ]
    messages: list[dict[str, Any]] = [
        {
            "role": "system",
            "content": f"You are coding agent number {number}. Use the tools until the work is done.",
        },
        {
            "role": "user",
            "content": "Find the failing test in the project and mend it.",
        },
    ]
    found: dict[str, Any] = {
        "calls": 0,
        "unparsed": 0,
        "misses": 0,
        "cached": [],
        "turns_s": [],
    }
    before = 0
    with httpx.Client(base_url=base, timeout=600) as client:
        for turn in range(turns):
            body = {"model": model, "messages": messages, "tools": tools, "tool_choice": "required", "max_tokens": 120,
                    "seed": number * 1000 + turn, "parallel_tool_calls": False, **more}  # fmt: skip
            began = time.monotonic()
            answer = client.post("/v1/chat/completions", json=body)
            found["turns_s"].append(time.monotonic() - began)
            answer.raise_for_status()
            value = answer.json()
            usage, message = value["usage"], value["choices"][0]["message"]
            if turn:
                cached = usage["prompt_tokens_details"]["cached_tokens"]
                found["misses"] += cached < (before - 1) // BLOCK * BLOCK
                found["cached"].append(cached / usage["prompt_tokens"])
            before = usage["prompt_tokens"]
            messages.append(
                {
                    name: part
                    for name, part in message.items()
                    if name in ("role", "content", "tool_calls")
                }
            )
            for call in message.get("tool_calls", ()):
                found["calls"] += 1
                found["unparsed"] += not _is_valid(call["function"])
                messages.append(
                    {
                        "role": "tool",
                        "tool_call_id": call["id"],
                        "content": RESULTS[(number + turn) % len(RESULTS)],
                    }
                )
            found["unparsed"] += not message.get("tool_calls")
    return found


def _is_valid(function: dict[str, str]) -> bool:
    try:
        validate(json.loads(function["arguments"]), schema(function["name"]))
    except Exception as error:
        print(f"{function}: {type(error).__name__}", file=sys.stderr)
        return False
    return True


if __name__ == "__main__":
    main()
