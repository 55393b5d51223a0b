"""Makes sure that a real OpenBLAS can be loaded on Linux; run by `make`, harmless to run again.

MLX's CPU wheel links the reference BLAS, which is about 20 times slower. Ways, in this order: the system's library,
Debian's package (as root), and the PyPI build of OpenBLAS behind a small library that gives its functions their
usual names. Failing is not fatal: the program runs without, and says what it costs.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

LIBRARY = "libopenblas.so.0"
PACKAGE = "libopenblas0-pthread"
WHEEL = "scipy-openblas32==0.3.33.112.1"
TARGET = Path(sys.prefix, "lib", "rvllm", LIBRARY)


def loads(path: str) -> bool:
    """Can this library be loaded? Tried in a child, so that a broken one does no harm."""
    code = f"import ctypes; ctypes.CDLL({path!r}).cblas_sgemm"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def from_debian() -> bool:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    for command in (
        ["apt-get", "update", "-q"],
        ["apt-get", "install", "-y", "-q", "--no-install-recommends", PACKAGE],
    ):
        subprocess.run(
            command, capture_output=True, check=False, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        )
    return loads(LIBRARY)


def from_pypi() -> bool:
    """Install the wheel and build the library that forwards `cblas_x` and `x_` to its prefixed names."""
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--quiet",
        WHEEL.split("==", maxsplit=1)[0],
    ]
    compiler = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    if compiler is None or subprocess.run(pip, capture_output=True, check=False).returncode != 0:
        return False
    import scipy_openblas32  # type: ignore[import-not-found]

    source = Path(scipy_openblas32.get_lib_dir())
    real = next(source.glob("libscipy_openblas*.so"))
    ctypes.CDLL(str(real))
    with tempfile.TemporaryDirectory() as folder:
        assembly = Path(folder, "forward.s")
        assembly.write_text(forwarding_assembly(exported(real)))
        TARGET.parent.mkdir(parents=True, exist_ok=True)
        command = [compiler, "-shared", "-o", str(TARGET), str(assembly), "-Wl,--no-as-needed", str(real)]
        command += [f"-Wl,-rpath,{source}", f"-Wl,-soname,{LIBRARY}"]
        built = subprocess.run(command, capture_output=True, check=False)
    return built.returncode == 0 and loads(str(TARGET))


def exported(library: Path) -> list[str]:
    """The prefixed function names in the wheel's library."""
    names = re.findall(rb"\x00scipy_((?:cblas_)?[a-z][a-z0-9_]+)(?=\x00)", library.read_bytes())
    handle = ctypes.CDLL(str(library))
    return sorted({name.decode() for name in names if hasattr(handle, f"scipy_{name.decode()}")})


def forwarding_assembly(names: list[str]) -> str:
    """One jump a function: arguments and stack stay as they are, so no signature has to be known."""
    import platform

    jump = {"x86_64": "jmp scipy_{name}@PLT", "aarch64": "b scipy_{name}"}[platform.machine()]
    lines = [".text"]
    for name in names:
        lines += [f".globl {name}", f".type {name}, %function", f"{name}: {jump.format(name=name)}"]
    return "\n".join([*lines, '.section .note.GNU-stack,"",%progbits', ""])


def main() -> None:
    if not sys.platform.startswith("linux") or loads(LIBRARY) or loads(str(TARGET)):
        return
    print("OpenBLAS is missing; providing it (prompts are about 20 times slower without)", flush=True)
    if from_debian():
        print(f"OpenBLAS: installed Debian's {PACKAGE}")
    elif from_pypi():
        print(f"OpenBLAS: built {TARGET} over {WHEEL.split('==', maxsplit=1)[0]}")
    else:
        print(f"OpenBLAS could not be provided; install {PACKAGE} yourself. Going on without: slow, but right.")


if __name__ == "__main__":
    main()
