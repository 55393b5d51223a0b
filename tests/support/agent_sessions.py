"""Sessions of coding agents, run in the background while others are looked at."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from tests.support.npm import Packages

_AT_ONCE = 2

S = TypeVar("S")


@contextlib.contextmanager
def sessions_of(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    run: Callable[[str, Packages, Path], S],
) -> Iterator[dict[str, Future[S]]]:
    """The sessions of the agents whose tests were selected in the fixture's module.

    `run` gets an agent's name, the packages and a home of its own. Tests that use
    the fixture `sessions` have the agent's name as their parameter `name`.
    """
    packages, pool = Packages(), ThreadPoolExecutor(_AT_ONCE)
    futures = {}
    for item in request.session.items:
        if item.path != request.path or "sessions" not in item.fixturenames:
            continue
        name = item.callspec.params["name"]
        home = tmp_path_factory.mktemp(name)
        futures[name] = pool.submit(run, name, packages, home)
    yield futures
    pool.shutdown(cancel_futures=True)
    packages.close()
