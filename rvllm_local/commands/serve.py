"""`rvllm serve`: the localhost API over engines in processes of their own."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import re
import stat
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import platformdirs
from msgspec import structs

from rvllm_local import host
from rvllm_local.commands.choose_cache import with_server_cache
from rvllm_local.commands.default_model import default_model
from rvllm_local.commands.flags import engine_flags
from rvllm_local.commands.rank import serve_rank
from rvllm_local.commands.spares import Spares
from rvllm_local.config import Config, load_config
from rvllm_local.distributed.hosts import read_hosts
from rvllm_local.distributed.launched import LaunchedRank, take_launch
from rvllm_local.errors import ConfigError, MemoryBudgetError
from rvllm_local.models.locate import ModelFiles, locate
from rvllm_local.models.store import installed_models
from rvllm_local.option import expanded
from rvllm_local.options import RankHosts
from rvllm_local.process_notes import Note
from rvllm_local.server.app import running
from rvllm_local.server.http.settings import OLLAMA_PORT, ServerSettings, is_loopback
from rvllm_local.server.listener import bound
from rvllm_local.server.listener import serve as listen
from rvllm_local.server.models.inspection import InspectionProcesses
from rvllm_local.server.models.registry import Registry
from rvllm_local.server.models.served_model import OWN_PROCESSES, with_spares
from rvllm_local.server.process_limits import (
    prepare_limits,
    prepare_logs,
    report_to_log,
)
from rvllm_local.server.running_servers import announce

_KEY_VARIABLE = "RVLLM_API_KEY"
_MIN_KEY = 8
_THREADS = 64
_REFUSED = 2  # as the command line ends when it refuses an option
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
logger = logging.getLogger(__name__)


def serve(arguments: argparse.Namespace, spares: Spares | None = None) -> int:
    """Serve until a signal comes. Ends the process with status 0 after an orderly end.

    Where MLX's launcher has started this process as another rank than 0, it serves its
    part for rank 0. The first model gets the processes that are spare.
    """
    prepare_logs(None if arguments.log_file is None else Path(arguments.log_file))
    launched = take_launch(os.environ)
    config = load_config(engine_flags(arguments))
    hosts = None if launched is None else launched.hosts
    if launched is not None and launched.rank > 0:
        models = arguments.models or [default_model(config)]
        named = structs.replace(_with_hosts(config, hosts), model=models[0])
        return _serve_launched(named, launched)
    if arguments.hosts is not None:
        hosts = read_hosts(Path(arguments.hosts))
    return _serve_requests(arguments, _with_hosts(config, hosts), spares)


def _serve_launched(config: Config, launched: LaunchedRank) -> int:
    """One rank of a job whose ranks have all been given the same options."""
    from rvllm_local.distributed.backends import choose_backend

    choose_backend(config.options)
    return serve_rank(config, launched.hosts, launched.rank)


def _serve_requests(
    arguments: argparse.Namespace, config: Config, spares: Spares | None
) -> int:
    """The server itself."""
    settings = replace(settings_from(arguments), cache_dir=config.cache_dir)
    prepare_limits(settings.max_connections)
    report = host.prepare()
    if report.advice:
        logger.info("%s", report.advice)
    adapters = [adapter_of(text) for text in arguments.adapter]
    config = with_server_cache(config)
    models = arguments.models or [default_model(config)]
    asyncio.run(_serve(models, config, settings, adapters, spares))


def _with_hosts(config: Config, hosts: RankHosts | None) -> Config:
    """The configuration with a rank for each host.

    Raises `ConfigError` for settings of ranks where there is only one.
    """
    options = config.options
    if hosts is not None:
        options = structs.replace(options, ranks=len(hosts.addresses), hosts=hosts)
    if options.pipeline and options.ranks == 1:
        raise ConfigError(
            "--pipeline needs more than one rank: give --ranks N or --hosts FILE"
        )
    if options.backend != "any" and options.ranks == 1:
        raise ConfigError(
            "--backend is MLX's between ranks: give --ranks N or --hosts FILE, too"
        )
    return structs.replace(config, options=options)


async def _serve(
    models: Sequence[str],
    config: Config,
    settings: ServerSettings,
    adapters: Sequence[tuple[str, str]],
    spares: Spares | None,
) -> NoReturn:
    loop = asyncio.get_running_loop()
    report_to_log(loop)
    # Those who wait for an engine or a process take a thread each.
    loop.set_default_executor(ThreadPoolExecutor(_THREADS, "rvllm"))
    named = {}
    for name in models:
        files = await asyncio.to_thread(
            locate, name, logger.info, cache_dir=config.cache_dir
        )
        named[files.name] = files
    registry = _registry(named, config, settings, adapters, spares)
    loading: list[asyncio.Task[None]] = []
    notes: list[Note | None] = []

    def begin(port: int) -> None:
        _say_ready(settings, port)
        notes.append(announce(settings.host, port))  # held to the end
        loading.append(asyncio.create_task(_load_first(registry)))

    with bound(settings) as listening:
        async with running(registry, settings) as server:
            await listen(server, listening, begin)
            for task in loading:
                task.cancel()
    # All is closed by now, but for a model that was still being loaded: its process ends with this one. Taking the
    # interpreter down would wait for it, and can abort in a C++ thread that MLX has left.
    sys.stderr.flush()
    os._exit(0)


def _registry(
    named: Mapping[str, ModelFiles],
    config: Config,
    settings: ServerSettings,
    adapters: Sequence[tuple[str, str]],
    spares: Spares | None,
) -> Registry:
    """The models that may be asked for; the first of the named ones is the default."""
    available = {**installed_models(config.cache_dir), **named}
    if taken := [name for name, _ in adapters if name in (*available, "default")]:
        raise ConfigError(
            f"--adapter {taken[0]}=...: a model has this name already; choose another one"
        )
    openers = OWN_PROCESSES
    inspection = InspectionProcesses()
    if spares is not None:
        openers = with_spares(spares.engine, spares.prompts)
        inspection = InspectionProcesses(spares.inspection)
    return Registry(
        available,
        next(iter(named)),
        config.options,
        openers=openers,
        inspection=inspection,
        pinned=settings.pinned,
        adapters=adapters,
        aliases=dict(settings.aliases),
        keep_alive_s=settings.keep_alive_s,
        load_timeout_s=settings.load_timeout_s,
        finder=lambda: installed_models(config.cache_dir),
    )


async def _load_first(registry: Registry) -> None:
    """Load the default model right away: the first request should not have to wait for it."""
    name = registry.default
    try:
        async with registry.lease(name):
            pass
    except (ConfigError, MemoryBudgetError) as error:
        # No request can change that, so that the server ends before it has served.
        logger.error("%s could not be loaded: %s", name, error)
        sys.stderr.flush()
        os._exit(_REFUSED)
    except Exception as error:
        logger.error("%s could not be loaded: %s", name, error)


def _say_ready(settings: ServerSettings, port: int) -> None:
    scheme = "https" if settings.tls_certificate else "http"
    host = settings.host.strip("[]")
    if ":" in host:  # IPv6
        host = f"[{host}]"
    logger.info("serving on %s://%s:%d/v1 (Ctrl-C ends it)", scheme, host, port)
    if settings.ollama_port is not None:
        logger.info("and on Ollama's port, %d", settings.ollama_port)


def settings_from(
    arguments: argparse.Namespace, environ: Mapping[str, str] | None = None
) -> ServerSettings:
    """The settings that the flags ask for. Raises `ConfigError`."""
    environ = os.environ if environ is None else environ
    keys = _keys(arguments.api_key_file, environ)
    if not keys and not is_loopback(arguments.host):
        raise ConfigError(
            f"--host {arguments.host} lets others reach this server, so it needs a key: set {_KEY_VARIABLE}, or give "
            "--api-key-file"
        )
    if (arguments.tls_cert is None) != (arguments.tls_key is None):
        raise ConfigError("--tls-cert and --tls-key belong together; give both or none")
    if not 0 <= arguments.port <= 65535:
        raise ConfigError(f"--port must be from 0 to 65535, not {arguments.port}")
    if not 0 < (arguments.ollama_port or OLLAMA_PORT) <= 65535:
        raise ConfigError(
            f"--ollama-port must be from 1 to 65535, not {arguments.ollama_port}"
        )
    kept_s = _seconds(arguments.keep_responses)
    return ServerSettings(
        host=arguments.host,
        port=arguments.port,
        api_keys=keys,
        allowed_hosts=tuple(_host(text) for text in arguments.allow_host),
        allowed_origins=tuple(_origin(text) for text in arguments.allow_origin),
        is_lenient=arguments.lenient,
        keep_alive_s=None
        if arguments.keep_alive is None
        else _seconds(arguments.keep_alive),
        drain_s=_seconds(arguments.drain),
        pinned=tuple(arguments.pin),
        aliases=tuple(alias_of(text) for text in arguments.alias),
        tls_certificate=arguments.tls_cert,
        tls_key=arguments.tls_key,
        ollama_port=arguments.ollama_port,
        responses_file=_responses_file() if kept_s else None,
        responses_max_age_s=kept_s,
    )


def _responses_file() -> Path:
    """Where responses are kept that clients asked to be stored."""
    data = platformdirs.user_data_dir("rvllm", appauthor=False)
    return Path(data, "responses", "responses.db")


def _keys(path: str | None, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Keys from a file, one a line, or from the environment; never from the command line, which others can read."""
    if path is None:
        keys = environ.get(_KEY_VARIABLE, "").split()
    else:
        try:
            mode = Path(path).stat().st_mode
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"--api-key-file {path} cannot be read: {error}"
            ) from error
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(
                f"--api-key-file {path} can be read by others; run: chmod 600 {path}"
            )
        keys = [
            line.strip() for line in lines if line.strip() and not line.startswith("#")
        ]
        if not keys:
            raise ConfigError(f"--api-key-file {path} holds no key")
    if any(
        len(key) < _MIN_KEY or not key.isascii() or not key.isprintable()
        for key in keys
    ):
        raise ConfigError(
            f"an API key must have at least {_MIN_KEY} printable ASCII characters"
        )
    return tuple(keys)


def alias_of(text: str) -> tuple[str, str]:
    """The two names in NAME=MODEL. Raises `ConfigError`."""
    name, _, model = text.partition("=")
    if not re.fullmatch(r"[A-Za-z0-9][\w.:/-]{0,99}", name) or not model:
        raise ConfigError(f"--alias {text!r:.200} must be NAME=MODEL")
    return name, model


def adapter_of(text: str) -> tuple[str, str]:
    """The name and the folder in NAME=DIR. Raises `ConfigError`."""
    name, _, folder = text.partition("=")
    if (
        not re.fullmatch(r"[A-Za-z0-9][\w.:/-]{0,99}", name)
        or not folder
        or not expanded(folder).is_dir()
    ):
        raise ConfigError(
            f"--adapter {text!r:.200} must be NAME=DIR, with a folder that exists"
        )
    return name, str(expanded(folder).absolute())


def _host(text: str) -> str:
    if not re.fullmatch(r"\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+", text):
        raise ConfigError(
            f"--allow-host {text!r} is not the name of a host; write it like example.org, without a port"
        )
    return text


def _origin(text: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s*]+", text):
        raise ConfigError(
            f"--allow-origin {text!r} is not an origin; write it like https://example.org, without a path"
        )
    return text


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    if match is None:
        raise ConfigError(f"{text!r} is not a time; write it like 90s, 10m, 1h or 30d")
    return float(match[1]) * _UNITS[match[2]]
