"""llama.cpp's own llama-server, built from the source that the llama-cpp-python package carries.

    python -m benchmarks.peers.llama_server        # fetches and builds it once; prints where it is

Needs cmake, a C++ compiler and some minutes. Everything stays below the user's cache folder, in peers/.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from benchmarks.peers.process import ServerProcess, free_port

VERSION = "0.3.36"
_PACKAGE = f"llama-cpp-python=={VERSION}"
_OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release", "BUILD_SHARED_LIBS": "OFF", "GGML_NATIVE": "ON", "LLAMA_CURL": "OFF",
    "LLAMA_OPENSSL": "OFF", "LLAMA_BUILD_TESTS": "OFF", "LLAMA_BUILD_EXAMPLES": "OFF", "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_UI": "OFF", "LLAMA_USE_PREBUILT_UI": "OFF", "LLAMA_BUILD_IS_DEV": "OFF",
}  # fmt: skip


def provide() -> Path:
    """The program, built if it is not there yet. Raises SystemExit with what is missing."""
    from rvllm_local.config import default_cache_dir

    folder = default_cache_dir() / "peers" / f"llama-cpp-python-{VERSION}"
    program = folder / "build" / "bin" / "llama-server"
    if program.exists():
        return program
    if (cmake := shutil.which("cmake")) is None:
        raise SystemExit(
            "llama-server is built with cmake, which is not there; on Debian: apt install cmake g++"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "source").exists():
        _fetch(folder)
    settings = [f"-D{name}={value}" for name, value in _OPTIONS.items()]
    source = folder / "source" / "vendor" / "llama.cpp"
    subprocess.run(
        [cmake, "-S", str(source), "-B", str(folder / "build"), *settings], check=True
    )
    jobs = str(os.cpu_count() or 1)
    subprocess.run(
        [
            cmake,
            "--build",
            str(folder / "build"),
            "-j",
            jobs,
            "--target",
            "llama-server",
        ],
        check=True,
    )
    return program


def _fetch(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        options = ["--no-deps", "--no-binary", "llama-cpp-python", "--dest", place]
        subprocess.run(
            [sys.executable, "-m", "pip", "download", *options, _PACKAGE], check=True
        )
        (archive,) = Path(place).glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(Path(place), filter="data")
        (unpacked,) = (path for path in Path(place).iterdir() if path.is_dir())
        unpacked.rename(folder / "source")


def version() -> str:
    """What the program says of itself, with the package it came in."""
    done = subprocess.run(
        [str(provide()), "--version"], capture_output=True, text=True, check=True
    )
    found = re.search(r"version: (\S+)", done.stdout + done.stderr)
    return f"{found[1] if found else 'unknown'} (llama-cpp-python {VERSION})"


class LlamaServer(ServerProcess):
    """The running server on a .gguf file; a context manager."""

    name = "llama.cpp"
    ready = "/health"

    def __init__(self, gguf: Path, *options: str) -> None:
        port = free_port()
        command = [
            str(provide()),
            "--model",
            str(gguf),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--no-webui",
        ]
        super().__init__([*command, *options], port, gguf.stem)


if __name__ == "__main__":
    print(provide(), version())
