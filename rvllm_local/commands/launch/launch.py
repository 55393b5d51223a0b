"""`rvllm launch`: runs a coding agent on the server of this machine."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shlex
import shutil
import signal
from collections.abc import Sequence

from rvllm_local.commands.default_model import decided_model
from rvllm_local.commands.launch.agents import Agent, Settings, find_agent
from rvllm_local.commands.launch.profile import profile_folder, write_profile
from rvllm_local.commands.launch.server import AgentServer, ServedModel
from rvllm_local.config import load_config, show_progress
from rvllm_local.errors import ConfigError, ParameterError

_NO_KEY = "none"  # agents insist on one, and the server asks for none
_ROOMY = 65536  # below it, long tasks are compacted often
_END_S = 10.0


def launch(arguments: argparse.Namespace) -> int:
    """Run the agent and return its exit status."""
    agent = find_agent(arguments.agent, may_be_other=arguments.print)
    if not arguments.print and shutil.which(agent.command[0]) is None:
        raise ParameterError(
            "agent",
            f"{agent.title} is not installed ({agent.command[0]} is not in PATH); "
            f"install it with: {agent.install}",
        )
    return asyncio.run(_launch(agent, arguments))


async def _launch(agent: Agent, arguments: argparse.Namespace) -> int:
    server = AgentServer(
        arguments.url,
        arguments.model,
        decided_model(load_config()),
        may_start=not arguments.print,
    )
    try:
        look = server.look if arguments.print else server.find
        served = await look()
        settings = _settings(
            agent, served, is_forced=arguments.force or arguments.print
        )
        if arguments.print:
            _print_settings(agent, settings)
            return 0
        write_profile(agent, settings)
        command = [*agent.command_with(settings), *arguments.rest]
        environment = {**os.environ, **agent.environment_with(settings)}
        keeping = asyncio.create_task(server.keep())
        try:
            return await _run(command, environment)
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
    finally:
        await server.release()


def _settings(agent: Agent, served: ServedModel, is_forced: bool) -> Settings:
    """What the agent is told. Raises `ConfigError` for a context that is too small."""
    context = served.context or agent.least_context or _ROOMY
    if context < agent.least_context:
        text = (
            f"{served.model} has a context of {context} tokens, and {agent.title} needs "
            f"{agent.least_context} for its own instructions and a few turns"
        )
        if not is_forced:
            raise ConfigError(
                f"{text}; choose a model with more (rvllm search), or give --force"
            )
        show_progress(text)
    elif agent.least_context and context < _ROOMY:
        show_progress(
            f"{served.model} has a context of {context} tokens: enough for short tasks"
        )
    return Settings(
        address=served.address,
        model=served.model,
        context=context,
        key=os.environ.get("RVLLM_API_KEY", "").split(" ")[0] or _NO_KEY,
        profile=str(profile_folder(agent.name)),
    )


def _print_settings(agent: Agent, settings: Settings) -> None:
    """Show what would be set, as lines for a shell."""
    print(f"# {agent.title}: {settings.model}, {settings.context} tokens of context")
    for name, value in agent.environment_with(settings).items():
        print(f"export {name}={shlex.quote(value)}")
    for name, text in agent.files_with(settings).items():
        print(f"# {settings.profile}/{name}:")
        for line in text.splitlines():
            print(f"#   {line}")
    if agent.command:
        print(shlex.join(agent.command_with(settings)))


async def _run(command: Sequence[str], environment: dict[str, str]) -> int:
    """The agent's exit status; signals that end this process end it first."""
    process = await asyncio.create_subprocess_exec(*command, env=environment)
    loop = asyncio.get_running_loop()
    # Ctrl-C reaches the agent itself, which may use it for other things than its end.
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, process.terminate)
    try:
        status = await process.wait()
    finally:
        if process.returncode is None:
            await _end(process)
    return 128 - status if status < 0 else status


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_END_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
