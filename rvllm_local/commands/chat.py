"""`rvllm chat`: decides between the app and the plain lines, and finds the history. Imported only when it runs."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rvllm_local.config import load_config
from rvllm_local.errors import ConfigError

if TYPE_CHECKING:
    from rvllm_local.tui.launcher import ServerLauncher
    from rvllm_local.tui.options import ChatOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `rvllm chat`."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="MODEL | QUESTION",
        help="the model that answers, a question to begin with, or both",
    )
    parser.add_argument(
        "--model", "-m", metavar="NAME", help="the model, where a word is a question"
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
        "--json", action="store_true", help="print the answer as JSON and end"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a sampling parameter, such as temperature=0; may be repeated",
    )
    parser.add_argument(
        "--no-history", action="store_true", help="neither read nor write chats"
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
    from rvllm_local.commands.default_model import decided_model
    from rvllm_local.tui.launcher import ServerLauncher
    from rvllm_local.tui.options import ChatOptions
    from rvllm_local.tui.settings import load_settings
    from rvllm_local.tui.start import read_settings, read_words
    from rvllm_local.tui.themes import CHOICES

    settings = load_settings()
    theme = arguments.theme or settings.theme
    if theme is not None and theme not in CHOICES:
        raise ConfigError(
            f"there is no theme {theme!r}; known are {', '.join(CHOICES)}"
        )
    request = read_words(arguments.words, _model_names(arguments.words))
    model = arguments.model or request.model
    prompt = arguments.prompt or request.prompt
    is_piped = prompt is not None and not sys.stdin.isatty()
    history = arguments.history or history_path(os.environ)
    options = ChatOptions(
        history=None if arguments.no_history else history,
        model=model,
        system=arguments.system,
        is_temporary=arguments.temporary or arguments.no_history,
        resume=arguments.resume,
        theme=arguments.theme,
        settings=settings,
        params=read_settings(arguments.set),
        prompt=prompt or "",
        is_json=arguments.json,
        context=sys.stdin.read() if is_piped else "",
    )
    url = arguments.endpoint or settings.endpoint
    starts = model or decided_model(load_config())
    launcher = ServerLauncher(url, starts, port=settings.port)
    if is_plain(arguments):
        from rvllm_local.tui.run_plain import run_plain

        return run_plain(options, launcher, prompt)
    return _run_on_screen(options, launcher, asks_ground=not theme)


def _run_on_screen(
    options: ChatOptions,
    launcher: ServerLauncher,
    *,
    asks_ground: bool,
) -> int:
    """Run the chat over the whole screen and return its exit status."""
    from rvllm_local.tui.app import ChatApp
    from rvllm_local.tui.terminal_ground import ask_ground, has_sixteen_colours
    from rvllm_local.tui.terminal_keys import teach_keys
    from rvllm_local.tui.themes import fitting_theme

    # Who ignored it, as nohup does, would leave a chat that turns without a terminal.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    teach_keys()
    if asks_ground:
        ground = ask_ground(sys.stdin, sys.stdout)
        theme = fitting_theme(ground, has_sixteen_colours(sys.stdout))
        options = replace(options, default_theme=theme)
    app = ChatApp(options, launcher)
    status = app.run()
    if status is None:
        return app.return_code or 0
    return status


def _model_names(words: Sequence[str]) -> Collection[str]:
    """The catalogue's names, where there is more than one word to tell apart."""
    if len(words) < 2:
        return ()
    from rvllm_local.models.catalogue import Catalogue

    return Catalogue.load().entries


def is_plain(arguments: argparse.Namespace) -> bool:
    """Whether there is no screen to draw on, or none is wanted."""
    return bool(
        arguments.plain
        or arguments.json
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
