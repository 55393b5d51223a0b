"""MLX's own C++ compilations for a CPU, with its header precompiled.

MLX compiles each fused kernel once a machine, and a header takes most of the time: 1.4 s
of processor time became 0.3. A whole run on a fresh machine compiles about a hundred.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import platformdirs

CACHE = platformdirs.user_cache_path("rvllm") / "tests" / "mlx-header"
HEADER = Path("mlx", "backend", "cpu", "compiled_preamble.h")
# As MLX gives them: with others the compiler takes the header as it is.
FLAGS = ("-std=c++17", "-O3", "-Wall", "-fPIC")
SCRIPT = """\
#!/bin/sh
# The compiler; for a text of MLX's it looks for headers in a folder of ours first.
# A precompiled header can fail, where its addresses are taken: then without it.
case "$*" in
  *{include}*) {compiler} -I {folder} "$@" 2> /dev/null && exit ;;
esac
exec {compiler} "$@"
"""


class PrecompiledHeader:
    """Puts a g++ on the path that finds MLX's header in a precompiled form.

    It is made in the background, and is there for later runs. Until then, and where a
    compiler does not take it, the header is compiled with each text as it always was.
    """

    def __init__(self) -> None:
        self._scripts: Path | None = None
        self._making: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """Change the path of this process and its children. Only for g++ on Linux."""
        compiler, spec = shutil.which("g++"), find_spec("mlx")
        if sys.platform != "linux" or compiler is None or spec is None:
            return
        include = Path(next(iter(spec.submodule_search_locations or ())), "include")
        if not (include / HEADER).is_file():
            return
        folder = CACHE / version("mlx")
        self._make(compiler, include, folder)
        self._scripts = Path(tempfile.mkdtemp(prefix="rvllm-tests-"))
        script = self._scripts / "g++"
        text = SCRIPT.format(
            compiler=shlex.quote(compiler),
            include=shlex.quote(str(include)),
            folder=shlex.quote(str(folder)),
        )
        script.write_text(text, encoding="utf-8")
        script.chmod(0o700)
        os.environ["PATH"] = f"{self._scripts}{os.pathsep}{os.environ['PATH']}"

    def _make(self, compiler: str, include: Path, folder: Path) -> None:
        """Begin to compile the header, which gets its name when it is whole."""
        header = folder / HEADER
        if header.with_name(f"{HEADER.name}.gch").exists():
            return
        header.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(include / HEADER, header)
        made = header.with_name(f"{os.getpid()}.new")
        command = [compiler, *FLAGS, "-w", "-I", str(include), "-x", "c++-header"]
        command += [str(include / HEADER), "-o", str(made)]
        named = [str(made), f"{header}.gch"]
        self._making = subprocess.Popen(
            ["sh", "-c", f"{shlex.join(command)} && {shlex.join(['mv', *named])}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def end(self) -> None:
        """Wait for the header, and remove the script."""
        if self._making is not None:
            self._making.wait()
        if self._scripts is not None:
            shutil.rmtree(self._scripts, ignore_errors=True)
