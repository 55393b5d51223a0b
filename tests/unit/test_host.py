"""The preparation of the process: which BLAS is taken, and what is said when it is a slow one."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from rvllm_local import host

ROOT = Path(__file__).parents[2]
linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="macOS has Accelerate"
)


def report_of(before: str = "", **environ: str) -> host.HostReport:
    """What a fresh process reports, after running the statement `before`."""
    code = f"{before}\nimport rvllm_local.host as h; r = h.prepare(); print((r.blas, r.is_fast_blas, r.advice))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environ},
    )
    return host.HostReport(*ast.literal_eval(done.stdout))


def test_preparing_twice_gives_the_first_report() -> None:
    assert host.prepare() is host.prepare()


def test_preparing_loads_no_mlx() -> None:
    code = (
        "import sys, rvllm_local.host as h; h.prepare(); sys.exit('mlx' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_users_command_buffer_limits_win() -> None:
    code = "import os, rvllm_local; print(os.environ['MLX_MAX_OPS_PER_BUFFER'], os.environ['MLX_MAX_MB_PER_BUFFER'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        env={**os.environ, "MLX_MAX_OPS_PER_BUFFER": "7"},
    )
    assert done.stdout.split() == [b"7", b"100000000"]


@linux
@pytest.mark.parametrize("path", ["/nowhere/libopenblas.so.0", "libm.so.6"])
def test_a_wrong_rvllm_blas_is_told(path: str) -> None:
    report = report_of(RVLLM_BLAS=path)
    assert report.advice is not None
    assert path in report.advice or not report.is_fast_blas


@linux
def test_mlx_imported_first_is_told() -> None:
    report = report_of("import mlx.core")
    assert not report.is_fast_blas
    assert "import" in (report.advice or "")


@linux
def test_a_machine_without_openblas_is_told_the_cost_and_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host, "_candidates", list)
    report = host._load_openblas()
    assert not report.is_fast_blas
    assert "slower" in (report.advice or "")
    assert "libopenblas0-pthread" in (report.advice or "")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "provide_openblas", ROOT / "scripts" / "provide_openblas.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@linux
def test_nothing_is_installed_where_a_library_loads(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "loads", lambda path: path == script.LIBRARY)
    monkeypatch.setattr(
        script, "succeeds", lambda command: pytest.fail(f"ran {command}")
    )
    assert script.provide() == "OpenBLAS: libopenblas.so.0 is there"


@linux
def test_failing_to_provide_is_told_and_not_fatal(
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(script, "loads", lambda _path: False)
    monkeypatch.setattr(script, "succeeds", lambda _command: False)
    assert "could not be provided" in script.provide()


@linux
def test_a_command_that_is_missing_or_hangs_is_a_failure(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "TIMEOUT_S", 0.2)
    assert not script.succeeds(["/nowhere/apt-get"])
    assert not script.succeeds(["sleep", "5"])


@linux
def test_the_forwarding_library_reaches_the_prefixed_function(
    script: ModuleType, tmp_path: Path
) -> None:
    import ctypes
    import platform
    import shutil

    if shutil.which("c++") is None or platform.machine() not in script.JUMPS:
        pytest.skip("no C++ compiler for this machine's jumps")
    (tmp_path / "real.cpp").write_text(
        'extern "C" double scipy_cblas_ddot(double a, double b) { return a * b; }'
    )
    (tmp_path / "forward.s").write_text(
        script.forwarding_assembly(["cblas_ddot"], platform.machine())
    )
    build = ["c++", "-shared", "-fPIC", "-o"]
    subprocess.run(
        [*build, str(tmp_path / "real.so"), str(tmp_path / "real.cpp")], check=True
    )
    assert script.exported(tmp_path / "real.so") == ["cblas_ddot"]
    parts = [
        str(tmp_path / "forward.s"),
        "-Wl,--no-as-needed",
        str(tmp_path / "real.so"),
    ]
    subprocess.run([*build, str(tmp_path / "forward.so"), *parts], check=True)
    forwarded = ctypes.CDLL(str(tmp_path / "forward.so")).cblas_ddot
    forwarded.argtypes, forwarded.restype = (
        (ctypes.c_double, ctypes.c_double),
        ctypes.c_double,
    )
    assert forwarded(6.0, 7.0) == 42.0


RUN_LAST = """
import os, sys, threading
import rvllm_local.host as host

def tell():
    print(host.runs_last(), os.sched_getscheduler(0) == os.SCHED_IDLE)

may_tell = threading.Event()
earlier = threading.Thread(target=lambda: (may_tell.wait(), tell()))
earlier.start()
tell()
host.run_last()
tell()
may_tell.set()
earlier.join()
later = threading.Thread(target=tell)
later.start()
later.join()
"""


@linux
def test_a_process_that_runs_last_does_so_with_all_its_threads() -> None:
    command = [sys.executable, "-c", RUN_LAST]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    before, *after = done.stdout.splitlines()
    assert before == "False False"
    assert after == ["True True"] * 3
