"""The formula is what the script makes of it, with the versions that are locked."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import pytest
from packaging.tags import Tag
from packaging.utils import canonicalize_name, parse_wheel_filename

from scripts.homebrew import (
    BUILDER,
    FORMULA,
    PLATFORM,
    PYTHON,
    Resource,
    formula,
    project,
    requirements,
    resources_in,
)
from scripts.sbom import closure, constrained

TEXT = FORMULA.read_text(encoding="utf-8")
RESOURCES = resources_in(TEXT)
# What runs on no Mac, though it is locked and required here.
LINUX_ALONE = {"mlx-cpu", "onnxruntime", "flatbuffers"}


def file_of(resource: Resource) -> str:
    return urlsplit(resource.url).path.rpartition("/")[2]


def fits(tag: Tag) -> bool:
    """Whether CPython of the formula takes a wheel of this tag on Apple Silicon."""
    python = "cp" + PYTHON.replace(".", "")
    if tag.platform == "any":
        return tag.interpreter.startswith("py")
    match = re.fullmatch(r"macosx_(\d+)_\d+_(arm64|universal2)", tag.platform)
    if match is None or int(match[1]) > int(PLATFORM.split("_")[1]):
        return False
    return tag.interpreter in {python, "py3"} or tag.abi == "abi3"


def test_the_script_makes_this_formula() -> None:
    assert formula(RESOURCES) == TEXT
    assert f'version "{project()["version"]}"' in TEXT


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource.name)
def test_a_wheel_has_the_locked_version_and_a_hash(resource: Resource) -> None:
    name, version, _, tags = parse_wheel_filename(file_of(resource))
    locked = constrained()
    locked["mlx-metal"] = locked["mlx"]
    assert name == resource.name
    assert str(version) == locked[name]
    assert any(fits(tag) for tag in tags), "no wheel for Apple Silicon"
    assert re.fullmatch("[0-9a-f]{64}", resource.sha256)
    # The index keeps a file below a part of another hash of it.
    assert resource.url.startswith("https://files.pythonhosted.org/packages/")


def test_nothing_is_missing_and_nothing_too_much() -> None:
    names = {resource.name for resource in RESOURCES}
    assert len(names) == len(RESOURCES)
    locked = constrained()
    needed = set(closure(project()["dependencies"], locked)) - LINUX_ALONE
    assert names == needed | {BUILDER, "mlx-metal"}


def test_a_mac_is_given_the_packages_of_macos() -> None:
    words = [word.partition("=")[0].partition(">")[0] for word in requirements()]
    names = {canonicalize_name(word) for word in words}
    assert {"mlx", "mlx-metal", BUILDER} <= names
    assert "onnxruntime" not in names
