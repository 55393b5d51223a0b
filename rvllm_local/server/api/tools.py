"""The tools of a request: functions, and kinds that this server cannot run.

Only functions reach the model. Other kinds are left out, so that a client which offers
them beside its functions can be served; to demand one is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rvllm_local.server.http.problems import Problem, bad_request

Choice = str | dict[str, Any]


@dataclass(frozen=True, slots=True)
class Tools:
    """Functions in the shape of chat completions, and whether others were left out."""

    functions: tuple[dict[str, Any], ...] = ()
    has_left_out: bool = False

    def names(self) -> list[str]:
        return [tool["function"]["name"] for tool in self.functions]

    def named(self, name: str) -> Choice:
        """The choice of one function. Raises `Problem` if a tool is left out."""
        self._check_any()
        if self.has_left_out and name not in self.names():
            raise self._demands_left_out()
        return {"type": "function", "function": {"name": name}}

    def required(self) -> str:
        """The choice of any function. Raises `Problem` if there is none."""
        self._check_any()
        return "required"

    def demanded(self, kind: Any) -> Problem:
        """The problem of a choice of type `kind`, which is no function."""
        if not self.functions and not self.has_left_out:
            return bad_request("tool_choice is given without tools", "tool_choice")
        return self._demands_left_out()

    def allowed(self, names: Sequence[str]) -> Tools:
        """Only the functions with these names."""
        functions = []
        for tool in self.functions:
            if tool["function"]["name"] in names:
                functions.append(tool)
        return Tools(tuple(functions), self.has_left_out)

    def _check_any(self) -> None:
        if self.functions:
            return
        if self.has_left_out:
            raise self._demands_left_out()
        raise bad_request("tool_choice is given without tools", "tool_choice")

    def _demands_left_out(self) -> Problem:
        names = ", ".join(self.names()[:20])
        remedy = "leave tool_choice out"
        if names:
            remedy = f"use auto, none, required, or one of these functions: {names}"
        return bad_request(
            "tool_choice demands a tool that this server cannot run; it runs no tools "
            f"itself, and only functions reach the model: {remedy}",
            "tool_choice",
            "unsupported",
        )


def read_choice(tools: Tools, choice: Choice | None) -> tuple[Tools, Choice]:
    """A choice in either of OpenAI's forms, and the tools that it leaves.

    Functions are named in an object of their own, or beside the type. Raises `Problem`.
    """
    match choice:
        case None | "auto":
            return tools, "auto"
        case "none":
            return tools, "none"
        case "required" | "any":
            return tools, tools.required()
        case {"type": "function", "function": {"name": str(name)}}:
            return tools, tools.named(name)
        case {"type": "function", "name": str(name)}:
            return tools, tools.named(name)
        case {"type": "allowed_tools", "mode": _} if isinstance(choice, dict):
            return _read_allowed(tools, choice)
        case {"type": "allowed_tools", "allowed_tools": dict(inner)}:
            return _read_allowed(tools, inner)
        case {"type": str(kind)} if kind != "function":
            raise tools.demanded(kind)
    raise bad_request(
        "tool_choice: use none, auto, required, or an object of type function or "
        "allowed_tools",
        "tool_choice",
    )


def _read_allowed(tools: Tools, allowed: dict[str, Any]) -> tuple[Tools, Choice]:
    names = []
    for row in allowed.get("tools") or ():
        match row:
            case {"function": {"name": str(name)}} | {"name": str(name)}:
                names.append(name)
    kept = tools.allowed(names)
    if allowed.get("mode") == "required":
        return kept, kept.required()
    if allowed.get("mode") == "auto":
        return kept, "auto"
    raise bad_request("tool_choice.mode: use one of auto, required", "tool_choice.mode")
