"""The agents that can be started, read from `agents.toml`."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources

from rvllm_local.errors import ParameterError

OTHER = "other"
_VALUE = re.compile(r"%([a-z]+)%")


@dataclass(frozen=True, slots=True)
class Settings:
    """What an agent is told. `address` is the server's, without /v1."""

    address: str
    model: str
    context: int
    key: str
    profile: str

    @property
    def values(self) -> dict[str, str]:
        """The values by the names that stand for them."""
        return {
            "address": self.address,
            "model": self.model,
            "context": str(self.context),
            # An answer must leave room for a conversation.
            "output": str(min(8192, max(256, self.context // 4))),
            "key": self.key,
            "profile": self.profile,
        }


@dataclass(frozen=True, slots=True)
class Agent:
    """One agent. In all its texts, `%name%` stands for a value.

    `files` are written into its profile by their names, `first_files` where they are
    not there. An agent that always reads the user's folder of configurations is shown
    one in its profile, `config`, which lacks what `hidden` names. `package` is the
    version that was proven.
    """

    name: str
    title: str
    command: tuple[str, ...]
    install: str
    package: str
    least_context: int
    environment: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict)
    first_files: Mapping[str, str] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()

    def command_with(self, settings: Settings) -> list[str]:
        """The command, without the user's own arguments."""
        return [_filled(word, settings) for word in self.command]

    def environment_with(self, settings: Settings) -> dict[str, str]:
        """The variables that it is started with."""
        variables = {}
        for name, text in self.environment.items():
            variables[name] = _filled(text, settings)
        return variables

    def files_with(self, settings: Settings) -> dict[str, str]:
        """The texts of the profile's files; values are escaped as JSON and TOML do."""
        texts = {}
        for name, text in self.files.items():
            texts[name] = _filled(text.lstrip("\n"), settings, is_quoted=True)
        return texts


def load_agents() -> dict[str, Agent]:
    """All agents by name, and `other` for those that are not known."""
    source = resources.files("rvllm_local.commands.launch").joinpath("agents.toml")
    rows = tomllib.loads(source.read_text(encoding="utf-8"))
    agents = {}
    for name, row in rows.items():
        command = tuple(row.pop("command"))
        hidden = tuple(row.pop("hidden", ()))
        agents[name] = Agent(name=name, command=command, hidden=hidden, **row)
    return agents


def find_agent(name: str, may_be_other: bool) -> Agent:
    """The agent of this name. Raises `ParameterError` that lists them."""
    agents = load_agents()
    if name in agents and name != OTHER:
        return agents[name]
    if may_be_other:
        return agents[OTHER]
    names = ", ".join(agent for agent in agents if agent != OTHER)
    raise ParameterError(
        "agent",
        f"{name[:80]!r} is no agent that can be started; known are {names}. For "
        f"another one, rvllm launch --print {name[:80]} shows what to set",
    )


def _filled(text: str, settings: Settings, is_quoted: bool = False) -> str:
    values = settings.values

    def value(match: re.Match[str]) -> str:
        filled = values[match[1]]
        return json.dumps(filled)[1:-1] if is_quoted else filled

    return _VALUE.sub(value, text)
