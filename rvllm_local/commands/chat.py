"""`rvllm chat`: decides between the app and the plain lines, and finds the history. Imported only when it runs."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from rvllm_local.config import load_config
from rvllm_local.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `rvllm chat`."""
    parser.add_argument(
        "model",
        nargs="?",
        help="the model that answers; the server's own if it is left out",
    )
    parser.add_argument(
        "--endpoint",
        metavar="URL",
        help="an OpenAI-style server; its key is read from RVLLM_API_KEY or OPENAI_API_KEY",
    )
    parser.add_argument(
        "--plain",
        action="store_true",
        help="lines instead of a screen; chosen by itself for pipes",
    )
    parser.add_argument(
        "--prompt", "-p", metavar="TEXT", help="answer this in plain lines and end"
    )
    parser.add_argument(
        "--continue",
        "-c",
        dest="resume",
        action="store_const",
        const="last",
        help="go on with the last chat",
    )
    parser.add_argument(
        "--temporary", action="store_true", help="keep nothing of this chat"
    )
    parser.add_argument(
        "--system", default="", metavar="TEXT", help="the system prompt of the new chat"
    )
    parser.add_argument(
        "--theme",
        metavar="NAME",
        help="dark, light, high-contrast, terminal or terminal-light",
    )
    parser.add_argument(
        "--history", type=Path, metavar="FILE", help="where chats are kept"
    )


def chat(arguments: argparse.Namespace) -> int:
    """Run the chat and return its exit status."""
    from rvllm_local.tui.launcher import ServerLauncher
    from rvllm_local.tui.options import ChatOptions
    from rvllm_local.tui.settings import load_settings
    from rvllm_local.tui.themes import CHOICES

    settings = load_settings()
    theme = arguments.theme or settings.theme
    if theme is not None and theme not in CHOICES:
        raise ConfigError(
            f"there is no theme {theme!r}; known are {', '.join(CHOICES)}"
        )
    options = ChatOptions(
        arguments.history or history_path(os.environ),
        arguments.model,
        arguments.system,
        arguments.temporary,
        arguments.resume,
        arguments.theme,
        settings,
    )
    server = ServerLauncher(
        arguments.endpoint or settings.endpoint, arguments.model or load_config().model
    )
    if is_plain(arguments):
        from rvllm_local.tui.plain import run_plain

        return run_plain(options, server, arguments.prompt)
    from rvllm_local.tui.app import ChatApp

    app = ChatApp(options, server)
    return app.run() or 0


def is_plain(arguments: argparse.Namespace) -> bool:
    """Whether there is no screen to draw on, or none is wanted."""
    return bool(
        arguments.plain
        or arguments.prompt is not None
        or not sys.stdin.isatty()
        or not sys.stdout.isatty()
        or os.environ.get("TERM", "") in ("", "dumb")
    )


def history_path(environ: os._Environ[str] | dict[str, str]) -> Path:
    """Where chats are kept, unless RVLLM_HISTORY says otherwise."""
    if "RVLLM_HISTORY" in environ:
        return Path(environ["RVLLM_HISTORY"]).expanduser()
    import platformdirs

    return Path(platformdirs.user_data_dir("rvllm", appauthor=False), "history.db")
