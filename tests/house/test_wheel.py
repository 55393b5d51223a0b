"""The sdist and the wheel made of it hold the tree's product, file for file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from rvllm_local import __version__
from tests.house.sources import MAPPED, PACKAGE, ROOT

ALONE = ("pyproject.toml", "README.md", "LICENSE")
# What setuptools adds to an sdist.
MADE = ("PKG-INFO", "setup.cfg")
UNCHECKED = ("__pycache__", "egg-info")


def product_files() -> dict[str, bytes]:
    """Files of the product by their place in the tree; links to folders aside."""
    files = {}
    for folder in (PACKAGE, *MAPPED):
        for path in (ROOT / folder).rglob("*"):
            is_linked = any(parent.is_symlink() for parent in path.parents)
            if path.is_file() and not is_linked and is_checked(str(path)):
                files[str(path.relative_to(ROOT))] = path.read_bytes()
    return files


def is_checked(name: str) -> bool:
    return not any(part in name for part in UNCHECKED)


def build(folder: Path, kind: str, target: Path) -> Path:
    """Run setuptools on a source folder; the file that it made."""
    code = f"from setuptools import build_meta as b; print(b.build_{kind}({str(target)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return target / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for name in (PACKAGE, *MAPPED):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    for name in ALONE:
        shutil.copy(ROOT / name, folder / name)
    return build(folder, "sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return build(source, "wheel", tmp_path_factory.mktemp("wheel"))


def test_the_sdist_holds_each_file_once(sdist: Path) -> None:
    """The links from the package to the top-level folders put nothing in twice."""
    with tarfile.open(sdist) as archive:
        members = {
            member.name.partition("/")[2]: archive.extractfile(member)
            for member in archive.getmembers()
            if not member.isdir()
        }
        files = {
            name: member.read()
            for name, member in members.items()
            if member is not None and is_checked(name) and name not in MADE + ALONE
        }
        links = [
            member.name
            for member in archive.getmembers()
            if not (member.isdir() or member.isfile())
        ]
    assert links == []
    assert files == product_files()


def test_the_wheel_holds_the_product_and_nothing_else(wheel: Path) -> None:
    expected = {}
    for name, content in product_files().items():
        is_mapped = name.partition("/")[0] in MAPPED
        expected[f"{PACKAGE}/{name}" if is_mapped else name] = content
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        files = {name: archive.read(name) for name in names}
    assert files == expected


def test_the_wheel_works(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import rvllm_local.cli, rvllm_local.tui, rvllm_local.models.catalogue\n"
        "print(rvllm_local.__file__)\n"
        "print(len(rvllm_local.models.catalogue.Catalogue.load().entries))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    place, count = done.stdout.split()
    assert Path(place) == tmp_path / PACKAGE / "__init__.py"
    assert int(count) > 10


def test_the_wheel_has_the_version_that_the_package_tells(wheel: Path) -> None:
    assert wheel.name.startswith(f"rvllm_local-{__version__}-")
