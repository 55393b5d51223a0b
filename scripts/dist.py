"""Builds the sdist, the wheel and the bill of materials, the same bytes each time.

python -m scripts.dist [FOLDER]

Files get the time of SOURCE_DATE_EPOCH, else that of the last commit. setuptools gives
a wheel's files that time by itself; the sdist is packed anew.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from scripts.sbom import document

ROOT = Path(__file__).parents[1]
_PARTS = ("rvllm_local", "models", "metal_kernels", "tui")
_ALONE = ("pyproject.toml", "README.md", "LICENSE")
_EARLIEST = 315532800  # a zip file knows no time before 1980


def build(target: Path) -> list[Path]:
    """Build all three files into a folder, and return them."""
    epoch = source_time()
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        _copy_source(source)
        made = _run_backend(source, "sdist", Path(folder, "sdist"), epoch)
        sdist = target / made.name
        repack(made, sdist, epoch)
        unpacked = Path(folder, "unpacked")
        with tarfile.open(sdist) as archive:
            archive.extractall(unpacked, filter="data")
        (inner,) = unpacked.iterdir()
        wheel = _run_backend(inner, "wheel", Path(folder, "wheel"), epoch)
        shutil.copy(wheel, target / wheel.name)
    bill = target / f"{sdist.name.removesuffix('.tar.gz')}.cdx.json"
    bill.write_text(json.dumps(document(), indent=1) + "\n")
    return [sdist, target / wheel.name, bill]


def source_time() -> int:
    """Seconds of the epoch that the files get."""
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if text is None:
        command = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        text = done.stdout.strip() or "0"
    return max(_EARLIEST, int(text))


def repack(made: Path, target: Path, epoch: int) -> None:
    """Pack an sdist anew: sorted, with one time, nobody's name and plain rights."""
    with (
        tarfile.open(made) as archive,
        target.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=epoch) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(archive.getmembers(), key=lambda row: row.name):
            member.mtime = epoch
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mode = 0o755 if member.isdir() else 0o644
            member.pax_headers = {}
            new.addfile(member, archive.extractfile(member))


def _copy_source(source: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in _PARTS:
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for name in _ALONE:
        shutil.copy(ROOT / name, source / name)


def _run_backend(source: Path, kind: str, target: Path, epoch: int) -> Path:
    """Let setuptools build one file."""
    target.mkdir()
    code = f"from setuptools import build_meta as b; print(b.build_{kind}({str(target)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=source,
        env={**os.environ, "SOURCE_DATE_EPOCH": str(epoch)},
        capture_output=True,
        text=True,
        check=True,
    )
    return target / done.stdout.split()[-1]


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist"
    for path in build(folder):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        print(f"{digest}  {path.name}")
