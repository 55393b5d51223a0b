"""A release is the same bytes whenever it is built, and says what it is made of."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from rvllm_local import __version__
from scripts.dist import build
from scripts.sbom import closure, constrained, document

EPOCH = 1_700_000_000


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> list[list[Path]]:
    """Two builds, in folders of their own."""
    patch = pytest.MonkeyPatch()
    patch.setenv("SOURCE_DATE_EPOCH", str(EPOCH))
    made = [build(tmp_path_factory.mktemp("dist")) for _ in range(2)]
    patch.undo()
    return made


def test_two_builds_are_the_same_bytes(builds: list[list[Path]]) -> None:
    for first, second in zip(*builds, strict=True):
        assert first.name == second.name
        assert first.read_bytes() == second.read_bytes(), first.name


def test_the_names_have_the_version(builds: list[list[Path]]) -> None:
    assert [path.name for path in builds[0]] == [
        f"rvllm_local-{__version__}.tar.gz",
        f"rvllm_local-{__version__}-py3-none-any.whl",
        f"rvllm_local-{__version__}.cdx.json",
    ]


def test_the_sdist_names_nobody(builds: list[list[Path]]) -> None:
    with tarfile.open(builds[0][0]) as archive:
        members = archive.getmembers()
    assert {member.mtime for member in members} == {EPOCH}
    assert {(row.uid, row.gid, row.uname, row.gname) for row in members} == {
        (0, 0, "", "")
    }


def test_the_bill_has_every_pinned_package(builds: list[list[Path]]) -> None:
    bill = json.loads(builds[0][2].read_text())
    assert bill["bomFormat"] == "CycloneDX" and bill == document()
    versions = {row["name"]: row["version"] for row in bill["components"]}
    assert versions == constrained()
    assert len({row["bom-ref"] for row in bill["components"]}) == len(versions)


def test_tools_of_development_are_no_part_of_the_product() -> None:
    scopes = {row["name"]: row["scope"] for row in document()["components"]}
    assert scopes["starlette"] == scopes["mlx-lm"] == "required"
    assert scopes["anyio"] == "required"  # starlette's own
    assert scopes["pytest"] == scopes["ruff"] == "excluded"


def test_requirements_are_followed_as_far_as_they_are_pinned() -> None:
    assert closure(["starlette>=1"], {"starlette": "1"}) == {"starlette"}
    assert closure(["nobody-has-this"], constrained()) == set()
