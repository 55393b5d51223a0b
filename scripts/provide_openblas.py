"""Makes sure that a real OpenBLAS can be loaded on Linux; run by `make`, harmless to run again.

MLX's CPU wheel links the reference BLAS, which is about 20 times slower. Ways, in this order: the system's library,
Debian's package (as root), and PyPI's build of OpenBLAS behind a small library that gives its functions their
usual names. One line says what was done. Failing is not fatal: the program runs without, and says what it costs.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

LIBRARY = "libopenblas.so.0"
PACKAGE = "libopenblas0-pthread"
WHEEL = "scipy-openblas32==0.3.34.481.3"
TARGET = Path(sys.prefix, "lib", "rvllm", LIBRARY)
JUMPS = {"x86_64": "jmp scipy_{name}@PLT", "aarch64": "b scipy_{name}"}
TIMEOUT_S = 300


def loads(path: str) -> bool:
    """Can this library be loaded? Tried in a child, so that a broken one does no harm."""
    code = f"import ctypes; ctypes.CDLL({path!r}).cblas_sgemm"
    return (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, check=False
        ).returncode
        == 0
    )


def succeeds(command: list[str]) -> bool:
    """Run quietly; a command that cannot run, fails or hangs is False."""
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            check=False,
            env=environ,
            stdin=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def from_debian() -> bool:
    """Install Debian's package, if this is root on a Debian."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    succeeds(["apt-get", "update", "-q"])  # with an old list the install may still work
    succeeds(["apt-get", "install", "-y", "-q", "--no-install-recommends", PACKAGE])
    return loads(LIBRARY)


def from_pypi() -> bool:
    """Install the wheel and build the library that forwards `cblas_x` and `x_` to its prefixed names."""
    compiler = next(
        (path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))),
        None,
    )
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--quiet",
        WHEEL,
    ]
    if compiler is None or platform.machine() not in JUMPS or not succeeds(pip):
        return False
    import scipy_openblas32  # type: ignore[import-not-found]

    source = Path(scipy_openblas32.get_lib_dir())
    real = next(source.glob("libscipy_openblas*.so"))
    with tempfile.TemporaryDirectory() as folder:
        assembly, built = Path(folder, "forward.s"), Path(folder, LIBRARY)
        assembly.write_text(forwarding_assembly(exported(real), platform.machine()))
        command = [
            compiler,
            "-shared",
            "-o",
            str(built),
            str(assembly),
            "-Wl,--no-as-needed",
            str(real),
        ]
        if not succeeds(
            [*command, f"-Wl,-rpath,{source}", f"-Wl,-soname,{LIBRARY}"]
        ) or not loads(str(built)):
            return False
        TARGET.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(built, TARGET)
    return True


def exported(library: Path) -> list[str]:
    """The prefixed function names in the wheel's library."""
    names = re.findall(
        rb"\x00scipy_((?:cblas_)?[a-z][a-z0-9_]+)(?=\x00)", library.read_bytes()
    )
    handle = ctypes.CDLL(str(library))
    return sorted(
        {name.decode() for name in names if hasattr(handle, f"scipy_{name.decode()}")}
    )


def forwarding_assembly(names: list[str], machine: str) -> str:
    """One jump a function: arguments and stack stay as they are, so no signature has to be known."""
    lines = [".text"]
    for name in names:
        lines += [
            f".globl {name}",
            f".type {name}, %function",
            f"{name}: {JUMPS[machine].format(name=name)}",
        ]
    return "\n".join([*lines, '.section .note.GNU-stack,"",%progbits', ""])


def provide() -> str:
    """Make sure of an OpenBLAS; returns what was done, in a line."""
    if not sys.platform.startswith("linux"):
        return "BLAS: the system's (Accelerate)"
    for path in (LIBRARY, str(TARGET)):
        if loads(path):
            return f"OpenBLAS: {path} is there"
    print(
        "OpenBLAS is missing; providing it (prompts are about 20 times slower without)",
        flush=True,
    )
    if from_debian():
        return f"OpenBLAS: installed Debian's {PACKAGE}"
    try:
        if from_pypi():
            return f"OpenBLAS: built {TARGET} over {WHEEL}"
    except (OSError, ImportError, StopIteration) as error:
        print(f"OpenBLAS from {WHEEL} failed: {error!r}", flush=True)
    return f"OpenBLAS could not be provided; install {PACKAGE} yourself. Going on without: slow, but right."


if __name__ == "__main__":
    print(provide())
